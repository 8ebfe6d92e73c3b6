"""The commands by which keeper and service are started, by whatever starts them."""

from __future__ import annotations

import sys
from pathlib import Path

_NOT_FROM_HERE = ["-P"]  # root must not import what lies in the current directory
KEEPER = Path(__file__).with_name("start_keeper.py")


def daemon_argv(
    root: Path, python: str = sys.executable, keeper: Path = KEEPER
) -> tuple[list[str], list[str]]:
    """The commands of keeper and service; the service's goes behind the keeper's."""
    service = ["-m", "nydus_fscache.daemon.main", "--root", str(root)]
    return keeper_argv(service, python, keeper)


def keeper_argv(
    words: list[str], python: str = sys.executable, keeper: Path = KEEPER
) -> tuple[list[str], list[str]]:
    """The same for any service: ``words`` go behind the interpreter."""
    return [python, "-I", "-S", str(keeper)], [python, *_NOT_FROM_HERE, *words]
