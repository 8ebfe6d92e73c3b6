"""``nydusctl``: ask a running nydusd, over its unix socket.

Knows no more than the API (docs/nydusd.md): it works with the original's daemon as with ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nydus_fscache
from nydus_fscache.cli.frame import guarded
from nydus_fscache.cli.output import size, table
from nydus_fscache.errors import DaemonError, UsageError

PROG = "nydusctl"
_PATIENCE_S = 60.0
_LIMIT = 16 << 20
_LEVELS = ("off", "error", "warn", "info", "debug", "trace")
_EXAMPLES = """\
examples:
  nydusctl --sock /run/nydus/api.sock info
  nydusctl --sock /run/nydus/api.sock --raw metrics cache
  nydusctl --sock /run/nydus/api.sock metrics backend --interval 1
  nydusctl --sock /run/nydus/api.sock mount -s image.boot -c nydusd.json -m /app -t rafs
  nydusctl --sock /run/nydus/api.sock umount -m /app
"""
Document = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(PROG, _run, argv)


def _run(words: list[str]) -> int:
    args = parser().parse_args(words)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=PROG,
        description="Ask a running nydusd.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "-S", "--sock", metavar="SOCKET", type=Path, required=True, help="its API socket"
    )
    made.add_argument("-r", "--raw", action="store_true", help="print the JSON as it came")
    made.add_argument("-V", "--version", action="version",
                        version=f"{PROG} {nydus_fscache.__version__}")  # fmt: skip
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)

    info = commands.add_parser("info", help="version, state and mounts")
    info.set_defaults(run=_info)

    setting = commands.add_parser("set", help="change the running daemon")
    setting.add_argument("kind", metavar="KIND", choices=("log-level", "log_level"),
                         help="log-level")  # fmt: skip
    setting.add_argument("value", metavar="VALUE", choices=_LEVELS, help=", ".join(_LEVELS))
    setting.set_defaults(run=_set)

    metrics = commands.add_parser("metrics", help="counters")
    metrics.add_argument("category", choices=("backend", "cache", "fsstats"))
    metrics.add_argument(
        "-I", "--interval", metavar="SECONDS", type=float,
        help="of backend: print what was done in each interval, until interrupted",
    )  # fmt: skip
    metrics.add_argument("-i", "--id", help="of this mount, such as /app; default: the only one")
    metrics.set_defaults(run=_metrics)

    mount = commands.add_parser("mount", help="mount an image in the daemon")
    mount.add_argument("-s", "--source", metavar="FILE", required=True, help="its bootstrap")
    mount.add_argument("-c", "--config", metavar="FILE", type=Path, required=True,
                       help="nydusd's configuration for it")  # fmt: skip
    mount.add_argument("-m", "--mountpoint", metavar="PATH", required=True, help="such as /app")
    mount.add_argument("-t", "--type", choices=("rafs", "passthrough_fs"), default="rafs")
    mount.set_defaults(run=_mount)

    umount = commands.add_parser("umount", help="unmount an image in the daemon")
    umount.add_argument("-m", "--mountpoint", metavar="PATH", required=True)
    umount.set_defaults(run=_umount)
    return made


class _Api:
    def __init__(self, sock: Path) -> None:
        self._sock = sock

    def call(self, method: str, path: str, document: Document | None = None, **query: str) -> Any:
        """The answer's document, None where it has none; ``DaemonError`` with its message."""
        from urllib.parse import urlencode  # noqa: PLC0415 - quick --help

        from nydus_fscache.config.http_options import Tls  # noqa: PLC0415
        from nydus_fscache.config.url import Url  # noqa: PLC0415
        from nydus_fscache.errors import BackendError  # noqa: PLC0415
        from nydus_fscache.http.pool import Pool  # noqa: PLC0415
        from nydus_fscache.http.wire import Deadline, Request  # noqa: PLC0415

        target = f"/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")
        url = Url("unix", str(self._sock), 0, target)
        headers = {"Content-Type": "application/json"} if document is not None else {}
        body = b"" if document is None else json.dumps(document).encode()
        pool = Pool(Tls(), _PATIENCE_S)
        try:
            deadline = Deadline(time.monotonic() + _PATIENCE_S, _PATIENCE_S)
            response = pool.exchange(Request(method, url, headers, body), deadline)
            try:
                text = response.read(_LIMIT)
            finally:
                response.close()
        except BackendError as e:
            raise DaemonError(f"nydusd at {e}", hint="does it run, with this --apisock?") from e
        finally:
            pool.close()
        if response.status >= 400:
            raise DaemonError(
                f"{method} {target.partition('?')[0]} answers {response.status}: {_said(text)}"
            )
        try:
            return json.loads(text) if text else None
        except (ValueError, RecursionError):
            raise DaemonError(f"{target} answers what is not JSON", hint="is it nydusd?") from None


def _said(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return body[:500].decode(errors="replace").strip()


def _info(args: argparse.Namespace) -> int:
    found = _Api(args.sock).call("GET", "daemon")
    if args.raw:
        print(json.dumps(found))
        return 0
    version = _table(found.get("version"))
    rows = [
        ["Version:", str(version.get("package_ver"))],
        ["Status:", str(found.get("state"))],
        ["Profile:", str(version.get("profile"))],
        ["Commit:", str(version.get("git_commit"))],
    ]
    print("\n".join(f"{name:<10}{value}" for name, value in rows))
    instances = _table(found.get("backend_collection"))
    if not instances:
        return 0
    print("Instances:")
    lines = []
    for name, entry in sorted(instances.items()):
        backend = _table(_table(_table(entry).get("config")).get("backend"))
        stamp, kind = _table(entry).get("mounted_time"), _table(entry).get("backend_type")
        lines.append([name, str(kind), str(backend.get("type", "-")), str(stamp)])
    print(table(["MOUNTPOINT", "TYPE", "BACKEND", "MOUNTED"], lines))
    return 0


def _set(args: argparse.Namespace) -> int:
    _Api(args.sock).call("PUT", "daemon", {"log_level": args.value})
    return 0


def _metrics(args: argparse.Namespace) -> int:
    paths = {"backend": "metrics/backend", "cache": "metrics/blobcache", "fsstats": "metrics"}
    if args.interval is not None and (args.category != "backend" or args.interval <= 0):
        raise UsageError("--interval is for metrics backend, and more than 0")
    query = {} if args.id is None else {"id": args.id}
    api, path = _Api(args.sock), paths[args.category]
    found = api.call("GET", path, **query)
    if args.interval is not None:
        return _watch(lambda: _table(api.call("GET", path, **query)), found, args.interval)
    if args.raw:
        print(json.dumps(found))
    else:
        show = {"backend": _backend, "cache": _cache, "fsstats": _fsstats}[args.category]
        print("\n".join(f"{name + ':':<26}{value}" for name, value in show(_table(found))))
    return 0


def _watch(ask: Callable[[], Document], before: Document, interval_s: float) -> int:
    """A line an interval: what was read in it."""
    print(f"{'READS/S':>9}  {'BYTES/S':>10}  {'ERRORS':>7}  {'MS A READ':>9}", flush=True)
    began = time.monotonic()
    while True:
        time.sleep(interval_s)
        found, now = ask(), time.monotonic()
        reads, amount, errors, millis = (
            _count(found, name) - _count(before, name)
            for name in (
                "read_count", "read_amount_total", "read_errors",
                "read_cumulative_latency_millis_total",
            )
        )  # fmt: skip
        took = now - began
        each = millis / reads if reads else 0.0
        print(
            f"{reads / took:>9.1f}  {size(amount / took):>10}  {errors:>7}  {each:>9.1f}",
            flush=True,
        )
        before, began = found, now


def _backend(found: Document) -> list[tuple[str, str]]:
    reads = _count(found, "read_count")
    millis = _count(found, "read_cumulative_latency_millis_total")
    return [
        ("Backend Type", str(found.get("backend_type"))),
        ("Read Amount", size(_count(found, "read_amount_total"))),
        ("Read Count", str(reads)),
        ("Read Errors", str(_count(found, "read_errors"))),
        ("Average Latency", f"{millis / reads:.1f} ms" if reads else "-"),
        ("Block Sizes, <1K to >=1M", _list(found, "read_count_block_size_dist")),
        ("Latency, <=1 to >2000 ms", _list(found, "read_cumulative_latency_millis_dist")),
    ]


def _cache(found: Document) -> list[tuple[str, str]]:
    requests = _count(found, "prefetch_requests_count")
    amount = _count(found, "prefetch_data_amount")
    begin = _count(found, "prefetch_begin_time_secs") * 1000
    begin += _count(found, "prefetch_begin_time_millis")
    end = _count(found, "prefetch_end_time_secs") * 1000 + _count(found, "prefetch_end_time_millis")
    files = found.get("underlying_files")
    return [
        ("Partial Hits", str(_count(found, "partial_hits"))),
        ("Whole Hits", str(_count(found, "whole_hits"))),
        ("Total Read", str(_count(found, "total"))),
        ("Directory", str(found.get("store_path"))),
        ("Files", " ".join(map(str, files)) if isinstance(files, list) else "-"),
        ("Entries", str(_count(found, "entries_count"))),
        ("Buffered", size(_count(found, "buffered_backend_size"))),
        ("Complete", "yes" if found.get("data_all_ready") is True else "no"),
        ("Prefetch Workers", str(_count(found, "prefetch_workers"))),
        ("Prefetch Amount", size(amount)),
        ("Prefetch Requests", str(requests)),
        ("Prefetch Average Size", size(amount / requests) if requests else "-"),
        ("Prefetch Unmerged", str(_count(found, "prefetch_unmerged_chunks"))),
        ("Prefetch Duration", f"{(end - begin) / 1000:.1f} s" if end > begin else "-"),
    ]


def _fsstats(found: Document) -> list[tuple[str, str]]:
    names = (
        "Getattr", "Readlink", "Open", "Release", "Read", "Statfs", "Getxattr", "Listxattr",
        "Opendir", "Lookup", "Readdir", "Readdirplus", "Access", "Forget", "BatchForget",
    )  # fmt: skip
    hits, errors = found.get("fop_hits"), found.get("fop_errors")
    rows = [
        ("Data Read", size(_count(found, "data_read"))),
        ("Open Files", str(_count(found, "nr_opens"))),
        ("Block Sizes, <1K to >=1M", _list(found, "block_count_read")),
        ("Latency, <=200 us to >2 s", _list(found, "read_latency_dist")),
    ]
    if isinstance(hits, list) and isinstance(errors, list):
        rows += [
            (name, f"{hit}, {failed} failed" if failed else str(hit))
            for name, hit, failed in zip(names, hits, errors, strict=False)
            if hit or failed
        ]
    return rows


def _mount(args: argparse.Namespace) -> int:
    body = {
        "source": args.source,
        "fs_type": args.type,
        "config": args.config.read_text(),
    }
    _Api(args.sock).call("POST", "mount", body, mountpoint=args.mountpoint)
    return 0


def _umount(args: argparse.Namespace) -> int:
    _Api(args.sock).call("DELETE", "mount", mountpoint=args.mountpoint)
    return 0


def _table(value: Any) -> Document:
    return value if isinstance(value, dict) else {}


def _count(found: Document, name: str) -> int:
    value = found.get(name)
    return value if isinstance(value, int) else 0


def _list(found: Document, name: str) -> str:
    value = found.get(name)
    return " ".join(map(str, value)) if isinstance(value, list) else "-"


if __name__ == "__main__":
    sys.exit(main())
