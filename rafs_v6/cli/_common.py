"""Options that commands share, and the JSON that nydus-snapshotter and nydusify read."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rafs_v6.writer.blob_file import write_atomically

_PREFETCH_MAX = 16 << 20


def examples(text: str) -> dict[str, Any]:
    """Arguments of ``add_parser`` that show ``text`` under the help."""
    return {
        "epilog": f"examples:\n{text}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


@contextlib.contextmanager
def progress_line(verb: str) -> Iterator[Callable[[int, int], None] | None]:
    """A line that shows bytes done of all, on a terminal; None where there is none."""
    if not sys.stderr.isatty():
        yield None
        return
    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.1:
            last = now
            share = 100 * done // max(total, 1)
            print(f"\r{verb} {done >> 20} of {total >> 20} MiB, {share} %\x1b[K",
                  end="", file=sys.stderr, flush=True)  # fmt: skip

    try:
        yield show
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-J", "--output-json", type=Path, metavar="FILE")
    add_log(parser)


def add_log(parser: argparse.ArgumentParser) -> None:
    # Snapshotter passes both log options behind the sub-command, where clap takes them too.
    parser.add_argument("-L", "--log-file", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    parser.add_argument("-l", "--log-level", help=argparse.SUPPRESS, default=argparse.SUPPRESS)


def add_builder(parser: argparse.ArgumentParser) -> None:
    """What ``create`` and ``merge`` share."""
    parser.add_argument(
        "--chunk-dict", type=_dictionary, metavar="[bootstrap=]FILE",
        help="refer to the chunks of this image instead of storing them again",
    )  # fmt: skip
    parser.add_argument(
        "--parent-bootstrap", type=Path, metavar="FILE", help="the image below the sources"
    )
    parser.add_argument("-C", "--config", help="accepted: no backend is needed to build")
    _add_prefetch(parser)
    add_common(parser)


def _dictionary(text: str) -> Path:
    kind, equals, path = text.partition("=")
    if equals and kind != "bootstrap" and "/" not in kind:
        raise argparse.ArgumentTypeError(f"{kind!r} is no kind of dictionary: bootstrap=FILE")
    return Path(path if kind == "bootstrap" and equals else text)


def _add_prefetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prefetch-policy", choices=("fs", "blob", "none"), default="none",
        help="paths from standard input, one a line: their data come first in the blob (blob),"
        " and are named in the image's prefetch table (fs)",
    )  # fmt: skip


def read_prefetch(args: argparse.Namespace) -> list[bytes]:
    if args.prefetch_policy == "none":
        return []
    return [line.strip() for line in sys.stdin.buffer.read(_PREFETCH_MAX).splitlines()]


def report(
    target: Path | None, *, bootstrap: Path | None, blobs: Sequence[str], compressor: str,
    data: Path | None = None, extra: Mapping[str, object] | None = None,
) -> None:  # fmt: skip
    """Print what was made; write the JSON when asked to, with ``extra`` members of our own.

    ``data``: where the blob went.  When that is standard output, this goes to standard error.
    """
    out = sys.stderr if data is not None and _is_stdout(data) else sys.stdout
    print(f"bootstrap: {bootstrap or '(inside the blob)'}", file=out)
    for blob in blobs:
        print(f"blob: {blob}", file=out)
    if target is None:
        return
    document = {
        "version": own_version(),
        "bootstrap": str(bootstrap or ""),
        "blobs": list(blobs),
        "external_bootstrap": "",
        "external_blobs": [],
        "trace": {},
        "fs_version": "6",
        "compressor": compressor,
        **(extra or {}),
    }
    write_json(target, document)


def own_version() -> str:
    """Of the installed package, or "unknown"."""
    # It imports a mail parser, and few callers want to know.
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("nydus-fscache")
    except PackageNotFoundError:
        return "unknown"


def write_json(target: Path, document: object) -> None:
    write_atomically(target, (json.dumps(document, indent=2).encode(), b"\n"))


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False
