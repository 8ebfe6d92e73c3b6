"""Names of a directory's entries that are packed behave as a dictionary does."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafs_v6.writer.sources import names as module
from rafs_v6.writer.sources.names import NameBudget, Names

_NAME = st.binary(min_size=1, max_size=3).filter(lambda name: b"/" not in name)
_STEP = st.tuples(st.sampled_from(["set", "remove", "pack", "get"]), _NAME)


@given(st.lists(_STEP, max_size=60))
def test_as_a_dictionary(steps: list[tuple[str, bytes]]) -> None:
    names, model = Names(), dict[bytes, int]()
    for row, (what, name) in enumerate(steps):
        if what == "set":
            names[name] = model[name] = row
        elif what == "remove":
            names.remove(name)
            model.pop(name, None)
        elif what == "pack":
            names.pack()
        assert names.get(name) == model.get(name)
    assert list(names.items()) == sorted(model.items())
    assert len(names) == len(model)


def test_few_bytes_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECENT_MAX", 1000)
    budget, directories = NameBudget(), [Names() for _ in range(3)]
    for row in range(12_000):
        names = directories[row % 3]
        names[b"name-%06d" % row] = row
        budget.spend(names)
    size = sum(
        sys.getsizeof(getattr(names, part)) for names in directories for part in Names.__slots__
    )
    assert size < 12_000 * 25
    assert directories[1].get(b"name-000001") == 1
    assert directories[1].get(b"name-000002") is None
