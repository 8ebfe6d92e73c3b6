"""Whose fault it is: the image's (``ImageError``), or the caller's (the builtin errors)."""

from __future__ import annotations


class RafsError(Exception):
    """Base of all errors of this library."""


class ImageError(RafsError, ValueError):
    """The image is damaged or hostile; the message says what is wrong, and where."""


class UnsupportedImage(ImageError):
    """An image that may well be right, of a kind that this library does not read."""


def shown(name: bytes) -> str:
    """A name out of an image for people and reports; what is no UTF-8 as escapes."""
    return name.decode("utf-8", "backslashreplace")
