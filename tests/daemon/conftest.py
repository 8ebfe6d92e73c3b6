"""Fixtures of the tests that run the daemon."""

from rig import rig

__all__ = ["rig"]
