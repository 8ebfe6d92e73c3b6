"""One call at a time for each name; calls of other names do not wait."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

_Name = TypeVar("_Name", bound=Hashable)


class Turns(Generic[_Name]):
    """Thread-safe.  Nothing stays of a name that nobody has or waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[_Name, threading.Lock] = {}
        self._callers: dict[_Name, int] = {}

    @contextlib.contextmanager
    def of(self, name: _Name) -> Iterator[None]:
        with self._lock:
            turn = self._turns.setdefault(name, threading.Lock())
            self._callers[name] = self._callers.get(name, 0) + 1
        try:
            with turn:
                yield
        finally:
            with self._lock:
                self._callers[name] -= 1
                if not self._callers[name]:
                    del self._turns[name], self._callers[name]

    def names(self) -> list[_Name]:
        """Of calls that are under way."""
        with self._lock:
            return list(self._turns)
