"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nydus_fscache.errors import NotPrivileged
from nydus_fscache.files import DEFAULT_ROOT, node_root


def path(text: str) -> Path:
    """For argparse: an empty one, of a variable that is not set, would be the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def resolved_path(text: str) -> Path:
    return Path(os.path.realpath(path(text)))


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=resolved_path,
        default=node_root(),
        help=f"state and cache of the daemon (default: {DEFAULT_ROOT})",
    )


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bootstrap",
        metavar="BOOTSTRAP",
        type=path,
        help="a bootstrap, or a blob that has one inside",
    )


def require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NotPrivileged(
            f"{what} needs root", hint="mounting and pre-content events need CAP_SYS_ADMIN: sudo"
        )
