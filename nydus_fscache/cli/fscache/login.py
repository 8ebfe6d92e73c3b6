"""``login``: new credentials of a registry for the images that are mounted from it."""

from __future__ import annotations

import argparse
import json

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.errors import UsageError

NAME = "login"
HELP = "hand new credentials of a registry to the running daemon"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Hand new credentials to the running daemon, for all images that are mounted "
        "from this registry. They are looked up as mount does: IMAGE_PULL_AUTH (base64 of "
        "user:password), else Docker's config.json and its credential helpers.",
        epilog="example:\n  docker login registry.example\n"
        "  nydus-fscache login registry.example\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("host", metavar="HOST", help="the registry, with its port if it has one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands
    from nydus_fscache.registry.credentials import find_auth  # noqa: PLC0415 - likewise

    require_root("login")
    auth = find_auth(args.host)
    if not auth:
        raise UsageError(
            f"no credentials for {args.host}", hint="docker login, or set IMAGE_PULL_AUTH"
        )
    request = {"host": args.host, "auth": auth}
    answer = Client(args.root).call("POST", "/v1/credentials", request)
    if args.json:
        print(json.dumps(answer))
    else:
        print(f"new credentials for {answer['images']} images of {args.host}")
    return 0
