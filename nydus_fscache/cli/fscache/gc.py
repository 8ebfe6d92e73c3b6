"""``gc``: delete cached blobs that no mount uses."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.cli.output import parse_size, size, table

NAME = "gc"
HELP = "delete cached data that no mount uses"
EXAMPLES = """\
examples:
  nydus-fscache gc --dry-run
  nydus-fscache gc --to 10G
"""


PATIENCE_S = 3600.0  # a busy disk takes 15 ms for each of 10^5 blobs


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Delete cached blobs that no mount uses, those first that were not used for "
        "longest, and bootstraps and metadata of images that were last used more than ten minutes "
        "ago; the access traces of the last 256 images stay. What is mounted is never touched.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.add_argument(
        "--to",
        metavar="SIZE",
        type=parse_size,
        default=0,
        help="stop when the cache is no larger, such as 500M or 10G (default: delete all unused)",
    )
    parser.add_argument("--json", action="store_true", help="print the whole answer")
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    require_root("gc")
    answer = _collect(args)
    if args.json:
        print(json.dumps(answer, indent=1))
        return 0
    if answer["evicted"]:
        rows = [
            [blob["name"].rpartition("/")[2][:20], size(blob["bytes"]), _day(blob["last_used"])]
            for blob in answer["evicted"]
        ]
        print(table(["BLOB", "SIZE", "LAST USED"], rows))
    verb = "would free" if args.dry_run else "freed"
    print(f"{verb} {size(answer['before'] - answer['after'])} of {size(answer['before'])}")
    return 0


def _collect(args: argparse.Namespace) -> dict[str, Any]:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    client = Client(args.root, PATIENCE_S)
    if client.runs():
        request = {"dry_run": args.dry_run, "to": args.to}
        answer: dict[str, Any] = client.call("POST", "/v1/gc", request)
        return answer
    from nydus_fscache.cache.evict import Evictor, OwnFiles  # noqa: PLC0415
    from nydus_fscache.cache.store import Store  # noqa: PLC0415
    from nydus_fscache.handover import state  # noqa: PLC0415
    from nydus_fscache.image import kept_files as images  # noqa: PLC0415
    from nydus_fscache.transport.registry import eviction_sources  # noqa: PLC0415

    store = Store(args.root)
    try:

        def evict(name: str) -> bool:
            store.blobs.forget(name)
            return True

        ours = OwnFiles(store.blobs.directory, list, evict)
        evictor = Evictor([ours, *eviction_sources(store)], args.root)
        answer = evictor.shrink(args.to, dry_run=args.dry_run)
        used = {binding.digest for binding in state.load(args.root / "state.json").bindings}
        keep = images.KEPT if args.to else 0
        gone = images.collect(store.images, used, keep=keep, dry_run=args.dry_run)
        return {**answer, "images": gone}
    finally:
        store.close()


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) if when else "never"
