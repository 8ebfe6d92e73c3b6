"""``top``: what the daemon is doing now: rates and latencies, mount by mount."""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.cli.output import printable, size, table
from nydus_fscache.errors import DaemonError

NAME = "top"
HELP = "show mounts, rates and latencies, live"
EXAMPLES = """\
examples:
  nydus-fscache top
  nydus-fscache top --once
  nydus-fscache top --json --interval 10 >> rates.jsonl

The first table has averages since the service started, each later one those of its interval.
"q" or Control-C ends it.
"""
_HOME, _CLEAR_BELOW, _CLEAR_LINE = "\x1b[H", "\x1b[J", "\x1b[K"
_LEAST_S = 0.1

Document = dict[str, Any]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Show what the daemon does, mount by mount, again and again.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=2.0, help="default: 2"
    )
    parser.add_argument("--once", action="store_true", help="one table, and the end")
    parser.add_argument("--json", action="store_true", help="one JSON object a table")
    add_root(parser)


def _seconds(text: str) -> float:
    try:
        return max(_LEAST_S, min(float(text), 86400.0))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands

    require_root("top")
    client, before = Client(args.root), None
    is_live = sys.stdout.isatty() and not args.json and not args.once
    with _keys(is_live) as wait:
        while True:
            try:
                now: Document | None = client.call("GET", "/v1/status")
            except DaemonError as e:
                if not is_live:
                    raise
                now = None
                _draw(f"{e}; waiting for one")
            if now is not None:
                rates = rates_between(before, now)
                if args.json:
                    print(json.dumps(rates), flush=True)
                elif is_live:
                    _draw(as_text(rates))
                else:
                    print(as_text(rates), flush=True)
            before = now
            if args.once or wait(args.interval):
                return 0


@contextmanager
def _keys(is_live: bool) -> Iterator[Any]:
    """A function that waits, and says whether the user wants the end."""
    if not is_live or not sys.stdin.isatty():

        def pause(seconds: float) -> bool:
            try:
                time.sleep(seconds)
            except KeyboardInterrupt:
                return True
            return False

        yield pause
        return
    import termios  # noqa: PLC0415 - only here
    import tty  # noqa: PLC0415

    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)

    def wait(seconds: float) -> bool:
        try:
            ready, _, _ = select.select([fd], [], [], seconds)
            return bool(ready) and os.read(fd, 1) in (b"q", b"Q", b"\x04", b"")
        except KeyboardInterrupt:
            return True

    try:
        tty.setcbreak(fd)
        print(_HOME + _CLEAR_BELOW, end="")
        yield wait
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _draw(text: str) -> None:
    """In place of the table before; cut where the terminal ends."""
    columns, rows = shutil.get_terminal_size()
    lines = [line[:columns] + _CLEAR_LINE for line in text.splitlines()[: rows - 1]]
    print(_HOME + "\n".join(lines) + "\n" + _CLEAR_BELOW, end="", flush=True)


# -- rates ---------------------------------------------------------------------------------------


def rates_between(before: Document | None, now: Document) -> Document:
    """``before``: an earlier status; None, or of another service: since the start."""
    if before is not None and before["pid"] != now["pid"]:
        before = None
    # uptimes are rounded
    seconds = max(0.05, float(now["uptime_s"] - (before["uptime_s"] if before else 0)))
    old_requests = before["requests"] if before else {}
    old_blobs = {b["name"]: b for b in before["blobs"]} if before else {}
    requests, blobs = now["requests"], {b["id"]: b for b in now["blobs"]}

    def rate(name: str) -> float:
        count: int = requests[name] - old_requests.get(name, 0)
        return round(count / seconds, 2)

    counts = requests["waits"]["counts"]
    if before:
        old = before["requests"]["waits"]["counts"]
        counts = [new - was for new, was in zip(counts, old, strict=True)]
    bounds = requests["waits"]["bounds_s"]
    return {
        "version": now["version"],
        "pid": now["pid"],
        "uptime_s": now["uptime_s"],
        "interval_s": round(seconds, 2),
        "requests_per_s": rate("events"),
        "misses_per_s": rate("misses"),
        "failed_per_s": rate("denied"),
        "waiting": requests["waiting"],
        "oldest_s": requests["oldest_s"],
        "miss_p50_s": _quantile(bounds, counts, 0.5),
        "miss_p95_s": _quantile(bounds, counts, 0.95),
        "unserved": len(now["waiting"]),
        "mounts": [
            _mount(m, [blobs[i] for i in m["blobs"] if i in blobs], old_blobs, seconds)
            for m in now["mounts"]
        ],
    }


def _mount(mount: Document, blobs: list[Document], old: Document, seconds: float) -> Document:
    def sum_of(name: str) -> int:
        return sum(blob[name] for blob in blobs)

    def more(name: str) -> int:
        return sum(blob[name] - old.get(blob["name"], {}).get(name, 0) for blob in blobs)

    requests = more("requests")
    spent = sum(
        b["reads"]["ms"] - old.get(b["name"], {}).get("reads", {}).get("ms", 0) for b in blobs
    )
    return {
        **{name: mount[name] for name in ("mountpoint", "image", "transport", "state", "fsid")},
        "size": sum_of("size"),
        "present": sum_of("present"),
        "bytes_per_s": round(more("fetched") / seconds),
        "backend_requests_per_s": round(requests / seconds, 2),
        "backend_read_s": round(spent / requests / 1000, 4) if requests else None,
        "errors": sum_of("errors"),
    }


def _quantile(bounds: list[float], counts: list[int], share: float) -> float | None:
    """The upper bound of the class in which that share of all is reached; None: there are none."""
    total, seen = sum(counts), 0
    for bound, count in zip(bounds, counts, strict=False):
        seen += count
        if total and seen >= share * total:
            return bound
    return bounds[-1] if total else None


def as_text(rates: Document) -> str:
    def time_of(seconds: float | None) -> str:
        if seconds is None:
            return "-"
        return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"

    lines = [
        f"nydus-fscache {rates['version']}, service {rates['pid']}, up {rates['uptime_s']:.0f} s; "
        f"over {rates['interval_s']:g} s:",
        f"kernel requests {rates['requests_per_s']:g}/s, misses {rates['misses_per_s']:g}/s, "
        f"failed {rates['failed_per_s']:g}/s; a miss waits up to {time_of(rates['miss_p50_s'])} "
        f"(p50), {time_of(rates['miss_p95_s'])} (p95)",
        f"waiting now {rates['waiting']}, the oldest for {rates['oldest_s']:g} s; "
        f"images not served {rates['unserved']}",
        "",
    ]
    rows = [
        [
            printable(os.fsencode(m["mountpoint"])) or f"(fsid {m['fsid']})",
            m["state"],
            f"{100 * m['present'] / max(1, m['size']):.0f}% of {size(m['size'])}",
            f"{size(m['bytes_per_s'])}/s",
            f"{m['backend_requests_per_s']:g}",
            time_of(m["backend_read_s"]),
            str(m["errors"]),
            printable(os.fsencode(m["image"])),
        ]
        for m in sorted(rates["mounts"], key=lambda m: -m["bytes_per_s"])
    ]
    header = ["MOUNTPOINT", "STATE", "PRESENT", "FETCHING", "REQ/S", "READ", "ERRORS", "IMAGE"]
    return "\n".join([*lines, table(header, rows)])
