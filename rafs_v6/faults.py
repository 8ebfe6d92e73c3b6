"""What is wrong with an image: raised at the first fault, or collected one after the other.

A reader stops at the first (``STRICT``).  A checker passes ``Checks`` with a
function that takes each ``Fault``, and the parsers go on wherever what follows
still has a meaning.
"""

from __future__ import annotations

from collections.abc import Callable

from rafs_v6.errors import ImageError, UnsupportedImage
from rafs_v6.values import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """``name``: stable, dotted, for programs ("superblock.magic"); ``place``: where it is;
    ``text``: what is there."""

    name: str
    place: str
    text: str


class Checks:
    """``report``: called with every fault; None: the first one is raised as ``ImageError``."""

    def __init__(self, report: Callable[[Fault], None] | None = None) -> None:
        self._report = report

    def fail(self, name: str, place: int | str, text: str, *, unsupported: bool = False) -> None:
        """``place``: words, or a byte of the bootstrap."""
        if self._report is None:
            raise (UnsupportedImage if unsupported else ImageError)(text)
        if isinstance(place, int):
            place = f"bootstrap, byte {place:#x}"
        self._report(Fault(name, place, text))

    def caught(self, name: str, place: int | str, error: ImageError) -> None:
        """The same for an error that a part raised by itself."""
        if self._report is None:
            raise error
        self.fail(name, place, str(error))

    def __call__(
        self, condition: object, name: str, place: int | str, text: str, *,
        unsupported: bool = False,
    ) -> bool:  # fmt: skip
        if not condition:
            self.fail(name, place, text, unsupported=unsupported)
        return bool(condition)


STRICT = Checks()
