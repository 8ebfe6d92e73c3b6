"""A look at the cache costs as much as there is in it: when one is taken."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_fscache.cache import quota
from nydus_fscache.cache.evict import Cached
from nydus_fscache.cache.quota import DEAR_S, PAUSE, PAUSE_ABOVE, Quota

LIMIT = 1000


class Cache:
    """A source of blobs, and time, which goes by as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.sizes: dict[str, int] = {}
        self.used: set[str] = set()
        self.written = self.looks = 0
        self.now = self.cpu = 0.0
        self.cost = 10 * DEAR_S
        clock = SimpleNamespace(monotonic=lambda: self.now, thread_time=lambda: self.cpu)
        monkeypatch.setattr(quota, "time", clock)
        store: Any = SimpleNamespace(images=root, is_in_place=lambda: True, root=root)
        self.quota = Quota(store, [self], threading.Event(), lambda: self.written, LIMIT)

    def blobs(self) -> list[Cached]:
        self.looks += 1
        self.cpu += self.cost
        return [Cached(n, size, float(at), n in self.used)
                for at, (n, size) in enumerate(self.sizes.items())]  # fmt: skip

    def drop(self, names: Sequence[str]) -> list[str]:
        for name in names:
            del self.sizes[name]
        return list(names)

    def room_wanted(self) -> int:
        return 0

    def write(self, name: str, size: int) -> None:
        self.sizes[name] = self.sizes.get(name, 0) + size
        self.written += size

    def after(self, seconds: float) -> int:
        """Looks in that time."""
        before = self.looks
        for _ in range(int(seconds)):
            self.now += 1
            self.quota._look()
        return self.looks - before


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    return Cache(monkeypatch, tmp_path)


def test_a_large_cache_is_seldom_looked_at_while_it_does_not_grow(cache: Cache) -> None:
    cache.write("a", LIMIT // 2)
    assert cache.after(cache.cost * PAUSE * 10) in range(5, 12)
    cache.cost = 0
    assert cache.after(20) >= 19, "a small one costs nothing"


def test_what_grows_above_the_limit_is_seen_at_once(cache: Cache) -> None:
    cache.write("a", LIMIT // 2)
    cache.after(2)
    cache.write("b", LIMIT // 3)
    assert cache.after(2) == 0
    cache.write("c", LIMIT // 3)
    assert cache.after(1) == 1
    assert sum(cache.sizes.values()) <= LIMIT
    assert cache.after(5) == 0


def test_above_the_limit_by_what_is_in_use(cache: Cache) -> None:
    """It may come free at any time."""
    cache.write("a", 2 * LIMIT)
    cache.used.add("a")
    cache.after(2)
    looks = cache.after(cache.cost * PAUSE_ABOVE * 10)
    assert looks in range(5, 12)
    cache.used.clear()
    cache.after(cache.cost * PAUSE_ABOVE + 1)
    assert cache.sizes == {}


def test_a_new_limit_is_kept_at_once(cache: Cache) -> None:
    cache.write("a", LIMIT // 2)
    cache.after(3)
    cache.quota.limit = LIMIT // 4
    cache.after(1)
    assert cache.sizes == {}


@pytest.mark.parametrize("cost", [0.0, 10 * DEAR_S])
def test_the_size_of_a_large_cache_is_known_without_a_look(cache: Cache, cost: float) -> None:
    cache.cost = cost
    cache.write("a", 100)
    assert cache.quota.size() == 100
    looks = cache.looks
    cache.write("b", 50)
    assert cache.quota.size() == 150
    assert cache.looks - looks == (cost == 0)
    cache.quota.gc(0, [], dry_run=False)
    assert cache.quota.size() == 0


def test_without_a_limit_nobody_looks(cache: Cache) -> None:
    cache.quota.limit = 0
    assert cache.after(100) == 0
