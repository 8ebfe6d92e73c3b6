"""What a run takes away at its end, even when a signal comes between two lines of its code.

The exception of a signal may come between the making of a thing and the block that would take it
away, or within that block.  So the way to end each such thing is noted before it is made, and
forgotten when it is gone; ``end_all``, when no signal raises any more, ends what is still noted.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Self

log = logging.getLogger("converter")

_noted: dict[int, Callable[[], None]] = {}


class Leftover:
    """``end`` takes any state: nothing was made yet, or all is gone already.  Thread-safe."""

    def __init__(self, end: Callable[[], None]) -> None:
        _noted[id(self)] = end

    def forget(self) -> None:
        _noted.pop(id(self), None)


class NewFile:
    """A temporary file's ``path`` in ``directory``, which is not there when the block is left."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f".nydusify-{secrets.token_hex(8)}"
        self._leftover = Leftover(self.remove)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._leftover.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def end_all() -> None:
    """What was noted last goes first.  Never raises: there is nobody to hear it."""
    while _noted:
        _, end = _noted.popitem()
        try:
            end()
        except Exception as e:
            log.warning("something is left behind: %s", e)
