"""``serve``: the daemon in the foreground."""

from __future__ import annotations

import argparse
import os
import sys

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.cli.output import parse_size

NAME = "serve"
HELP = "run the daemon in the foreground"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Run the daemon (keeper and service) in the foreground; it logs to standard "
        "error. SIGTERM and SIGINT unmount everything and end it.",
        epilog="example:\n  nydus-fscache serve --root /var/lib/nydus-fscache\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cache-limit",
        metavar="SIZE",
        type=parse_size,
        help="delete unused blobs when the cache is larger, such as 20G; 0: never "
        "(default: as it was)",
    )
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.handover.commands import daemon_argv  # noqa: PLC0415 - start-up time of other commands

    require_root("serve")
    args.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if args.cache_limit is not None:
        os.environ["NYDUS_FSCACHE_CACHE_LIMIT"] = str(args.cache_limit)
    sys.stdout.flush()
    program, service = daemon_argv(args.root)
    os.execv(program[0], [*program, *service])
