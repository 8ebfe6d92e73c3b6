"""What can go wrong while building, apart from what is wrong with an image (``ImageError``)."""

from __future__ import annotations

from rafs_v6.errors import RafsError


class BuildError(RafsError):
    """The source or the options do not make an image; the message says why.

    ``exit_code``: that of a program that fails so.
    """

    exit_code = 1


class UsageError(BuildError):
    """The options contradict each other, or say too little."""

    exit_code = 2


class UnlikeLayers(BuildError):
    """Images that cannot share a bootstrap."""


class SourceError(BuildError, ValueError):
    """The source is damaged or hostile; the message names the entry."""
