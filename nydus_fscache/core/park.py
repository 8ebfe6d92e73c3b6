"""Where descriptors are left so that they outlive this process (handover/link.py is the real one).

A name is parked before what it stands for is used, so that a kill between two steps never leaves
the kernel with something that no process of ours holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Park(Protocol):
    """``inherited``: what an earlier service left and nobody has taken yet, by name."""

    @property
    def inherited(self) -> Mapping[str, int]: ...

    def take(self, name: str) -> int | None:
        """The inherited descriptor, which is the caller's from now on; it stays parked."""
        ...

    def keep(self, name: str, fd: int) -> None:
        """Returns when ``fd`` would outlive this process; it must stay open until ``drop``."""
        ...

    def drop(self, name: str) -> None:
        """Before the descriptor is closed."""
        ...

    def direct(self) -> int:
        """A socket by which C can send ``keep NAME`` at once; the same number for ever."""
        ...
