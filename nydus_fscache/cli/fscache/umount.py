"""``umount``: end one mount; what it loaded stays cached for the next."""

from __future__ import annotations

import argparse
from pathlib import Path

from nydus_fscache.cli.fscache.common import add_root, require_root

NAME = "umount"
HELP = "unmount an image"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Unmount an image. Its data stay in the cache.",
        epilog="example:\n  nydus-fscache umount /mnt/app\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("umount")
    Client(args.root).call("DELETE", "/v1/mounts", mountpoint=str(args.mountpoint.resolve()))
    return 0
