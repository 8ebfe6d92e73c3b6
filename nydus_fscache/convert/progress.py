"""How far the work is, for whom it may concern.  This room prints nothing."""

from __future__ import annotations

from typing import Protocol


class Task(Protocol):
    """One layer, or one step.  Any thread."""

    def advance(self, count: int) -> None: ...

    def end(self, note: str = "") -> None: ...


class Progress(Protocol):
    def begin(self, name: str, total: int) -> Task:
        """``total`` bytes are to come."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, name: str, total: int) -> Silent:
        return self

    def advance(self, count: int) -> None:
        pass

    def end(self, note: str = "") -> None:
        pass
