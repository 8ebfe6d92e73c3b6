"""``unbind``: the end of ``bind``."""

from __future__ import annotations

import argparse
import json

from nydus_fscache.cli.fscache.bind import add_names
from nydus_fscache.cli.fscache.common import add_json, add_root, require_root

NAME = "unbind"
HELP = "stop serving an image that was bound"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Stop serving an image that was bound and is not mounted any more.",
        epilog="example:\n  nydus-fscache unbind --fsid app --domain team\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_names(parser)
    add_json(parser)
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("unbind")
    client = Client(args.root)
    answer = client.call("DELETE", "/v1/bindings", fsid=args.fsid, domain=args.domain)
    if args.json:
        print(json.dumps(answer))
    return 0
