"""Errors of conversion that no registry and no image is to blame for."""

from __future__ import annotations

from nydus_fscache.errors import FscacheError


class ConvertError(FscacheError):
    """The builder failed, or a conversion was told what cannot be done."""


class Stopped(ConvertError):
    """Another part of the work failed, or the user wants to stop."""
