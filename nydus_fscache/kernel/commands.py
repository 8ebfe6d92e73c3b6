"""The command line of a process, as far as it says what the process will read.

It may hold secrets: it is looked through, and never kept or logged.
"""

from __future__ import annotations

import os
from pathlib import Path

MOST_BYTES = 8 << 10
MOST_WORDS = 64


def command_of(pid: int) -> tuple[list[bytes], bytes]:
    """Its first words, and its working directory as it sees it; nothing of one that has ended."""
    base = Path(f"/proc/{pid}")
    try:
        with (base / "cmdline").open("rb") as file:
            words = file.read(MOST_BYTES).split(b"\0")[:MOST_WORDS]
        root, cwd = (os.readlink(os.fsencode(base / name)) for name in ("root", "cwd"))
    except OSError:
        return [], b"/"
    if root != b"/" and (cwd + b"/").startswith(root + b"/"):
        cwd = cwd[len(root) :] or b"/"
    return [word for word in words if word], cwd
