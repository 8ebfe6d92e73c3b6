"""``dataclass`` as in the standard library, in a third of the time: a program that starts makes a
hundred classes, and the library compiles seven functions for each, half a millisecond in all.

Guarantees: fields, defaults, ``__init__``, ``asdict``, ``replace``, equality, hash and ``repr`` are
those of the library's.  ``frozen`` is the type checker's to keep, as slots keep other names out:
values are made in a fifth of the time for it.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from rafs_v6.deferred import defer

defer("inspect")  # of use for classes without a docstring only, and with it ast and dis
import dataclasses  # noqa: E402
from dataclasses import asdict, field, fields, replace  # noqa: E402

__all__ = ["asdict", "dataclass", "field", "fields", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True):
        def make(cls):
            own = set(cls.__dict__)
            if not cls.__doc__:  # or the library makes one, with inspect
                cls.__doc__ = cls.__name__
            made = dataclasses.dataclass(cls, repr=False, eq=False, slots=slots)
            if "__repr__" not in own:
                made.__repr__ = _repr
            if eq:
                _compare(made, own, frozen=frozen)
            return made

        return make if cls is None else make(cls)


def _repr(self: Any) -> str:
    shown = (f for f in dataclasses.fields(self) if f.repr)
    values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
    return f"{type(self).__qualname__}({values})"


def _compare(cls: Any, own: set[str], *, frozen: bool) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    values = attrgetter(*names) if names else lambda self: ()

    def equal(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    def hashed(self: Any) -> int:
        return hash(values(self))

    if "__eq__" not in own:
        cls.__eq__ = equal
    if "__hash__" not in own:
        cls.__hash__ = hashed if frozen else None
