"""Whose fault it is: the image's (``ImageError``), or the caller's (the builtin errors).

Every error about an image names the file, or the path inside of it, that it is about.
"""

from __future__ import annotations

import os
import re
from typing import Self

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e]")


class RafsError(Exception):
    """Base of all errors of this library."""


class ImageError(RafsError, ValueError):
    """The image is damaged or hostile; the message says which part is wrong, and where.

    ``path``: the file, or the path inside of the image, that it was met at; None where only
    the caller knows it.
    """

    path: str | None = None

    def at(self, path: str | bytes | os.PathLike[str]) -> Self:
        """The same error, with the path before its text."""
        name = shown(path) if isinstance(path, bytes) else os.fspath(path)
        error = type(self)(f"{name}: {self}")
        error.path = name
        return error


class UnsupportedImage(ImageError):
    """An image that may well be right, of a kind that this library does not read."""


class NotAFileError(RafsError, OSError):
    """A symbolic link, a device, a fifo or a socket was to be read as a regular file."""


class BlobsError(RafsError):
    """The bytes of a blob could not be had; the message says why."""


def shown(name: bytes) -> str:
    """A name for people and reports: as escapes what is not UTF-8, or would move a cursor."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
