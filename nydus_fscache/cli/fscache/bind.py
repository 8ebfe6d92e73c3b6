"""``bind``: serve an image under an fsid, for ``mount -t erofs -o fsid=…`` by somebody else."""

from __future__ import annotations

import argparse
import json
import os

from nydus_fscache.cli.fscache.common import add_json, add_root, path, require_root
from nydus_fscache.cli.fscache.mount import add_backend, fetch_config
from nydus_fscache.errors import UsageError

NAME = "bind"
HELP = "serve an image over cachefiles under an fsid"
EXAMPLES = """\
examples:
  nydus-fscache bind image.boot --fsid app --domain team --blob-dir blobs/
  mount -t erofs -o fsid=app,domain_id=team none /mnt/app
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Serve an image over cachefiles on-demand; mounting it is up to you.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bootstrap", metavar="BOOTSTRAP", type=path)
    add_backend(parser)
    add_names(parser)
    add_json(parser)
    add_root(parser)


def add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fsid", required=True, help="the name to mount it by")
    parser.add_argument(
        "--domain", default="", help="images of one domain share blobs (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("bind")
    config = fetch_config(args)
    if config is None:
        raise UsageError("where are the blobs?", hint="add --blob-dir DIR or --backend FILE")
    request = {
        "bootstrap": os.path.realpath(args.bootstrap),
        **config.request(),
        "transport": "cachefiles",
        "fsid": args.fsid,
        "domain": args.domain,
    }
    answer = Client(args.root).call_first("POST", "/v1/bindings", request)
    if args.json:
        print(json.dumps(answer))
    return 0
