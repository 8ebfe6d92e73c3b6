"""Namespaces of this process.  Imports nothing: each ``mount`` command asks."""

from __future__ import annotations

import os


def mount_namespace() -> str:
    """This process's: "mnt:[NUMBER]"."""
    return os.readlink("/proc/self/ns/mnt")
