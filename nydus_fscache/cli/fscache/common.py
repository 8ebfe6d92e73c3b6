"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nydus_fscache.errors import NotPrivileged

DEFAULT_ROOT = Path("/var/lib/nydus-fscache")


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=lambda text: Path(text).resolve(),
        default=DEFAULT_ROOT,
        help=f"state and cache of the daemon (default: {DEFAULT_ROOT})",
    )


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bootstrap",
        metavar="BOOTSTRAP",
        type=Path,
        help="a bootstrap, or a blob that has one inside",
    )


def require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NotPrivileged(
            f"{what} needs root", hint="mounting and pre-content events need CAP_SYS_ADMIN: sudo"
        )
