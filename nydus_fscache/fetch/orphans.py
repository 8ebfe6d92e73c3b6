"""Cache files that an earlier service left, as opening one sees them (handover/orphans.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from nydus_fscache.cache.presence import PageMap
from rafs_v6.values import dataclass


@dataclass(slots=True)
class OrphanFile:
    """``pages``: the map that the C core knows while readers of the file wait, else None."""

    fill_fd: int
    pages_fd: int
    pages: PageMap | None = None
    misses: list[tuple[int, int]] = field(default_factory=list)  # offset, length


class OrphanFiles(Protocol):
    """Cache files that a mount may read and no binding has taken up, by object number."""

    unmark: Callable[[int], object]  # the transport's, once there is one; takes the descriptor

    def __contains__(self, oid: int) -> bool: ...

    def highest(self) -> int:
        """The highest number; 0: there is none."""
        ...

    def find(self, is_it: Callable[[int], bool]) -> int:
        """The number of the file whose descriptor satisfies ``is_it``; 0: none."""
        ...

    def look_at(self, oid: int) -> OrphanFile | None: ...

    def taken(self, oid: int) -> list[tuple[int, int]]:
        """Another owns the descriptors from now on; returns what readers have missed since."""
        ...

    def put_back(self, oid: int, fill_fd: int, pages_fd: int) -> None:
        """Nobody serves the file any more, but the kernel has it open."""
        ...

    def missed(self, oid: int, off: int, length: int) -> bool:
        """To be asked for once the file is taken; False when it is not here."""
        ...

    def hold(self) -> None:
        """From now on, readers of these files wait."""
        ...

    def stop_holding(self, oid: int) -> None: ...

    def fail_pending(self) -> None:
        """From now on they get EIO, and those that wait too."""
        ...

    def sweep(self) -> int:
        """Let go of what the kernel has closed; returns how many files it still reads."""
        ...
