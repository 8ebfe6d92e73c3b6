"""Whose fault it is: the image's (``ImageError``), or the caller's (the builtin errors)."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e]")


class RafsError(Exception):
    """Base of all errors of this library."""


class ImageError(RafsError, ValueError):
    """The image is damaged or hostile; the message says what is wrong, and where."""


class UnsupportedImage(ImageError):
    """An image that may well be right, of a kind that this library does not read."""


def shown(name: bytes) -> str:
    """A name for people and reports: as escapes what is not UTF-8, or would move a cursor."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
