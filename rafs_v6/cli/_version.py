"""The program's version, in the lines of the original."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_COMMIT_LEN = 40
_PACKAGE, _METADATA = "nydus_fscache-", ".dist-info"


def own_version() -> str:
    """Of the installed package, or "unknown".

    Out of the name of its metadata: ``importlib.metadata`` takes longer than some commands.
    """
    for directory in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(directory or "."):
                if name.startswith(_PACKAGE) and name.endswith(_METADATA):
                    return name[len(_PACKAGE) : -len(_METADATA)]
    return "unknown"


def version_lines() -> str:
    built = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(Path(__file__).stat().st_mtime))
    return (
        f"Version: \tv{own_version()}\nGit Commit: \t{_commit()}\nBuild Time: \t{built}\n"
        "Profile: \trelease"
    )


def _commit() -> str:
    """Of the checkout that this runs from, if it is one."""
    try:
        git = _ROOT / ".git"
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = Path(git.read_text().removeprefix("gitdir:").strip())
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:_COMMIT_LEN]
        name = head.removeprefix("ref: ")
        common = git
        if (git / "commondir").exists():
            common = git / (git / "commondir").read_text().strip()
        if (common / name).exists():
            return (common / name).read_text().strip()[:_COMMIT_LEN]
        for line in (common / "packed-refs").read_text().splitlines():
            commit, _, ref = line.partition(" ")
            if ref == name:
                return commit
    except (OSError, UnicodeError):
        pass
    return "unknown"
