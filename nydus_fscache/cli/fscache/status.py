"""``status``: what the daemon serves, and how much of it is here."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.cli.output import size, table

NAME = "status"
HELP = "show the daemon, its mounts and blobs"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Show the daemon, its mounts and blobs.",
        epilog="examples:\n  nydus-fscache status\n"
        "  nydus-fscache status --json | jq '.blobs[].fetched'\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the whole document")
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("status")
    document = Client(args.root).call("GET", "/v1/status")
    print(json.dumps(document, indent=2) if args.json else _as_text(document))
    return 0


def _as_text(document: dict[str, Any]) -> str:
    requests = document["requests"]
    lines = [
        f"nydus-fscache {document['version']}, service {document['pid']}, "
        f"keeper {document['keeper_pid']}, up {document['uptime_s']:.0f} s",
        f"kernel requests {requests['events']}: {requests['answered_in_c']} answered at once, "
        f"{requests['denied']} denied, {requests['waiting']} waiting",
    ]
    if document["mounts"]:
        rows = [
            [
                m["mountpoint"] or f"(fsid {m['fsid']})",
                "unmounted, in use" if m["state"] == "unmounted" else m["state"],
                m["transport"],
                m["image"],
            ]
            for m in document["mounts"]
        ]
        lines += ["", table(["MOUNTPOINT", "STATE", "TRANSPORT", "IMAGE"], rows)]
    if document["blobs"]:
        rows = [
            [
                b["id"][:20],
                size(b["size"]),
                f"{100 * b['present'] / max(1, b['size']):.0f}%",
                size(b["fetched"]),
                str(b["requests"]),
                str(b["errors"]),
                "unverified" if b["verified_by"] == "none" else b["verified_by"],
            ]
            for b in document["blobs"]
        ]
        header = ["BLOB", "SIZE", "PRESENT", "FETCHED", "REQUESTS", "ERRORS", "VERIFIED BY"]
        lines += ["", table(header, rows)]
    lines += [
        f"{b['id'][:20]}: last error: {b['last_error']}"
        for b in document["blobs"]
        if b["errors"] and b["last_error"]
    ]
    lines += [
        f"{w['mountpoint'] or w['image']}: not served for {w['for_s']:.0f} s: {w['error']}"
        for w in document["waiting"]
    ]
    return "\n".join(lines)
