"""``umount``: end one mount; what it loaded stays cached for the next."""

from __future__ import annotations

import argparse
import json

from nydus_fscache.cli.fscache.common import add_json, add_root, require_root, resolved_path
from nydus_fscache.errors import MountpointError

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
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=resolved_path)
    add_json(parser)
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("umount")
    client = Client(args.root)
    try:
        answer = client.call("DELETE", "/v1/mounts", mountpoint=str(args.mountpoint))
    except MountpointError as e:
        from nydus_fscache.cli.fscache.busy import explained  # noqa: PLC0415 - only then

        raise explained(e, client, str(args.mountpoint)) from e
    if args.json:
        print(json.dumps(answer))
    return 0
