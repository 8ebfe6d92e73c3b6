"""Our ``dataclass`` beside the library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import field
from typing import Any

import pytest

from rafs_v6 import values


def classes(dataclass: Callable[..., Any]) -> dict[str, Any]:
    @dataclass(frozen=True, slots=True)
    class Frozen:
        a: int
        b: str = "x"
        secret: str = field(default="s", repr=False)
        c: list[int] = field(default_factory=list)

    @dataclass(frozen=True, slots=True)
    class One:
        """Documented."""

        a: int

    @dataclass(frozen=True, slots=True)
    class Nothing:
        pass

    @dataclass(slots=True)
    class Mutable:
        a: int
        b: int = field(init=False)

        def __post_init__(self) -> None:
            self.b = 2 * self.a

    @dataclass(slots=True, eq=False)
    class Same:
        a: int

    @dataclass
    class Own:
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    return {c.__name__: c for c in (Frozen, One, Nothing, Mutable, Same, Own)}


def facts(cls: Any, *words: Any) -> dict[str, Any]:
    one, other = cls(*words), cls(*words)
    try:
        hashed = (hash(one) == hash(other), len({one, other}))
    except TypeError:
        hashed = None
    return {
        "repr": repr(one), "equal": one == other, "differs": one != other, "strange": one == 5,
        "dict": dataclasses.asdict(one), "copy": dataclasses.asdict(copy.copy(one)),
        "hash": hashed, "slots": getattr(cls, "__slots__", None),
        "fields": [f.name for f in dataclasses.fields(cls)], "match": cls.__match_args__,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [("Frozen", (1,)), ("Frozen", (1, "y", "z", ())), ("One", (5,)), ("Nothing", ()),
     ("Mutable", (2,)), ("Same", (1,)), ("Own", (1,))],
)  # fmt: skip
def test_it_is_as_the_librarys(name: str, words: tuple[Any, ...]) -> None:
    ours, theirs = (classes(d)[name] for d in (values.dataclass, dataclasses.dataclass))
    ours.__qualname__ = theirs.__qualname__
    assert facts(ours, *words) == facts(theirs, *words)


def test_values_of_another_class_are_others() -> None:
    made = classes(values.dataclass)
    assert made["One"](1) != made["Nothing"]()
    assert dataclasses.replace(made["Frozen"](1), b="z").b == "z"
    with pytest.raises(AttributeError):
        made["One"](1).other = 3


@values.dataclass(frozen=True, slots=True)
class Pickled:
    a: int


def test_it_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Pickled(3))) == Pickled(3)


@pytest.mark.skipif(
    not hasattr(dataclasses, "_create_fn"), reason="PYTHON 3.13: compiled in another way"
)
def test_it_compiles_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the library's seven: most of the time that a program takes to start."""
    made: list[str] = []
    real = dataclasses._create_fn  # type: ignore[attr-defined]

    def count(name: str, *words: Any, **more: Any) -> Any:
        made.append(name)
        return real(name, *words, **more)

    monkeypatch.setattr(dataclasses, "_create_fn", count)

    @values.dataclass(frozen=True, slots=True)
    class _Made:
        a: int

    assert made == ["__init__"]
