"""``upgrade``: the running daemon becomes that of this installation, under its readers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.errors import DaemonError

NAME = "upgrade"
HELP = "replace the running daemon by this version; readers only wait"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Replace the running keeper and service by those of this installation (or of "
        "another, with --python). Mounts stay; readers that need data wait until the new "
        "service is ready. A version that cannot take over is refused before anything happens; "
        "one that does not start is given up for the old one, which is an error here.",
        epilog="examples:\n"
        "  pip install --upgrade nydus-fscache && nydus-fscache upgrade\n"
        "  nydus-fscache upgrade --python /opt/nydus-fscache-2/bin/python --dry-run\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python",
        metavar="FILE",
        type=lambda text: Path(text).absolute(),
        default=Path(sys.executable),
        help="interpreter of the installation to change to (default: of this command)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say whether that version can take over"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("upgrade")
    client = Client(args.root)
    request = {"python": str(args.python), "dry_run": args.dry_run}
    result = client.call("POST", "/v1/upgrade", request)
    old, new = result["old_version"], result["new_version"]
    text = f"{old} can be replaced by {new}"
    if not args.dry_run:
        begin = time.monotonic()
        status = client.wait_for_successor(result.pop("pid"))
        result["pause_s"] = round(time.monotonic() - begin, 3)
        if status["upgrade_error"]:
            raise DaemonError(
                f"{new} does not run, {old} serves again: {status['upgrade_error']}",
                hint=f"see {args.root / 'daemon.log'}",
            )
        if status["version"] != new:
            raise DaemonError(
                f"{new} was to serve, but {status['version']} does",
                hint=f"see {args.root / 'daemon.log'}, and try again",
            )
        result |= {"pid": status["pid"], "keeper_pid": status["keeper_pid"]}
        text = f"{old} was replaced by {new} in {result['pause_s']} s, service {result['pid']}"
    print(json.dumps(result) if args.json else text)
    return 0
