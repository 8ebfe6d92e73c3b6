"""``serve``: the daemon in the foreground."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

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
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS:PORT",
        help="serve Prometheus' metrics there, too, such as 127.0.0.1:9230 (in any case they are "
        "at /metrics of ROOT/api.sock)",
    )
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.config import settings  # noqa: PLC0415
    from nydus_fscache.handover.commands import daemon_argv  # noqa: PLC0415 - start-up time

    require_root("serve")
    _check_root(args.root)
    if args.cache_limit is not None:
        settings.give("NYDUS_FSCACHE_CACHE_LIMIT", str(args.cache_limit))
    if args.metrics is not None:
        from nydus_fscache.api import metrics_port  # noqa: PLC0415 - start-up time

        metrics_port.parse_address(args.metrics)
        settings.give(metrics_port.VARIABLE, args.metrics)
    if sys.stdout is not None:
        sys.stdout.flush()
    program, service = daemon_argv(args.root)
    os.chdir("/")
    os.execv(program[0], [*program, *service])


def _check_root(root: Path) -> None:
    """What would keep the service from starting is told as by any command."""
    from nydus_fscache.cache.store import Store  # noqa: PLC0415 - start-up time
    from nydus_fscache.handover import state  # noqa: PLC0415
    from nydus_fscache.kernel.probe import require_cache_dir  # noqa: PLC0415

    require_cache_dir(root)
    if "LISTEN_FDS" not in os.environ:  # else systemd has the lock of the one before
        Store(root).close()
    state.load(root / "state.json")
