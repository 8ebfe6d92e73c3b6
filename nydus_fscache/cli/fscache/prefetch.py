"""``prefetch``: load parts of a mounted image before they are read, and watch it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.cli.output import size
from nydus_fscache.errors import BackendError, MountpointError

NAME = "prefetch"
HELP = "load a mounted image, or paths of it, ahead of its readers"
EXAMPLES = """\
examples:
  nydus-fscache prefetch /mnt/app
  nydus-fscache prefetch /mnt/app /usr/bin/python3 /app
  nydus-fscache prefetch /mnt/app --from trace --no-wait
"""
_POLL_S = 0.1
_STALLED_POLLS = 50  # errors were counted and nothing came for so long


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Load a mounted image, or some paths of it, in the background: readers "
        "always come first. Returns when all of it is there.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "image", metavar="IMAGE|MOUNTPOINT", help="a mountpoint, or the image as status shows it"
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="*", help="inside the image; directories with all below"
    )
    parser.add_argument(
        "--from",
        dest="policy",
        choices=("all", "table", "trace"),
        default="all",
        help="without PATHs: the whole image, its prefetch table, or its access trace "
        "(default: all)",
    )
    parser.add_argument("--no-wait", action="store_true", help="return at once")
    parser.add_argument("--json", action="store_true", help="print the end of it as JSON")
    add_root(parser)


def find_mount(document: dict[str, Any], image: str) -> dict[str, Any]:
    """The entry of ``status`` that is meant: by mountpoint, or by what was mounted."""
    path = os.path.realpath(image)
    mounts: list[dict[str, Any]] = document["mounts"]
    for names in (("mountpoint",), ("image", "bootstrap_digest", "fsid")):
        for mount in mounts:
            if any(mount[name] and mount[name] in (image, path) for name in names):
                return mount
    raise MountpointError(f"{image} is not mounted by us", hint="see nydus-fscache status")


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("prefetch")
    client = Client(args.root)
    mount = find_mount(client.call("GET", "/v1/status"), args.image)
    request = {"mountpoint": mount["mountpoint"], "prefetch": args.policy, "paths": args.paths}
    number = client.call("POST", "/v1/prefetches", request)["id"]
    done = {"id": number, "bytes": 0, "done": 0, "units_left": 0, "errors": 0}
    if number and not args.no_wait:
        done = _wait(client, number)
    if args.json:
        print(json.dumps(done))
    elif not number:
        print("all of it is there already")
    elif args.no_wait:
        print(f"started (number {number})")
    else:
        print(f"loaded {size(done['done'])}")
    return 0


def _wait(client: Any, number: int) -> dict[str, Any]:
    """Follow a run to its end; ``BackendError`` when it stands still after errors."""
    last, still = -1, 0
    while True:
        runs = client.call("GET", "/v1/prefetches")["prefetches"]
        found: dict[str, Any] | None = next((r for r in runs if r["id"] == number), None)
        if found is None:
            raise MountpointError("the image was unmounted", hint="mount it again")
        _draw(found)
        if not found["units_left"]:
            break
        still = still + 1 if found["done"] == last else 0
        last = found["done"]
        if found["errors"] and still > _STALLED_POLLS:
            raise BackendError(
                f"{found['units_left']} units did not come: {found.get('last_error')}",
                hint="see nydus-fscache status",
            )
        time.sleep(_POLL_S)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return found


def _draw(run: dict[str, Any]) -> None:
    if sys.stderr.isatty():
        share = run["done"] / max(1, run["bytes"])
        bar = "#" * int(30 * share)
        of = f"{size(run['done'])} of {size(run['bytes'])}"
        print(f"\r[{bar:30}] {100 * share:3.0f}%  {of}   ", end="", file=sys.stderr, flush=True)
