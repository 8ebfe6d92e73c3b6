"""``stop``: unmount everything and end the daemon."""

from __future__ import annotations

import argparse
import json

from nydus_fscache.cli.fscache.common import add_json, add_root, require_root
from nydus_fscache.errors import MountpointError

NAME = "stop"
HELP = "unmount everything and end the daemon"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Unmount all images and end the daemon. Fails when a mount is busy.",
        epilog="example:\n  nydus-fscache stop\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_json(parser)
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("stop")
    client = Client(args.root)
    try:
        answer = client.call("POST", "/v1/stop")
    except MountpointError as e:
        from nydus_fscache.cli.fscache.busy import explained  # noqa: PLC0415 - only then

        raise explained(e, client) from e
    client.wait_for_end()
    if args.json:
        print(json.dumps(answer))
    return 0
