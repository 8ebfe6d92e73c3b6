"""Options that commands share, and their output: text, and the JSON that nydus-snapshotter reads.

Standard output has data or text, never both: when a file that a command writes is the standard
output, its text goes to the error output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rafs_v6.cli._log import LEVELS
from rafs_v6.cli._version import own_version
from rafs_v6.writer.errors import UsageError

_PREFETCH_MAX = 16 << 20
_OUTPUTS = ("bootstrap", "blob", "output", "output_bootstrap", "output_json")


def examples(text: str) -> dict[str, Any]:
    """Arguments of ``add_parser`` that show ``text`` under the help."""
    return {
        "epilog": f"examples:\n{text}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def file_path(text: str) -> Path:
    """The type of all options that name a file or directory: "" is not the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def at_least(smallest: int, largest: int = (1 << 63) - 1) -> Callable[[str], int]:
    """The type of options that are whole numbers, decimal or 0x…"""

    def number(text: str) -> int:
        value = int(text, 0)
        if not smallest <= value <= largest:
            raise argparse.ArgumentTypeError(f"{value} is not from {smallest} to {largest}")
        return value

    return number


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


# -- options ----------------------------------------------------------------------------------


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-J", "--output-json", type=file_path, metavar="FILE",
        help="write a report in JSON; - for standard output",
    )  # fmt: skip
    add_log(parser)


def add_log(parser: argparse.ArgumentParser, *, top: bool = False) -> None:
    """``top``: of the program; every command takes them too, as the original's do."""
    absent = None if top else argparse.SUPPRESS
    parser.add_argument(
        "-L", "--log-file", type=file_path, metavar="FILE", default=absent,
        help="append what is done to this file",
    )  # fmt: skip
    parser.add_argument(
        "-l", "--log-level", choices=LEVELS, default=absent,
        help="how much is told (default: info in the file, warn on the terminal)",
    )  # fmt: skip


def add_config(parser: argparse.ArgumentParser) -> None:
    """For commands that need no backend: the file must be there, as the original wants it."""
    parser.add_argument(
        "-C", "--config", type=file_path, metavar="FILE",
        help="a configuration of nydusd; must be readable, but no backend is needed here",
    )  # fmt: skip


def check_config(args: argparse.Namespace) -> None:
    if args.config is not None:
        with args.config.open("rb"):
            pass


def add_builder(parser: argparse.ArgumentParser) -> None:
    """What ``create`` and ``merge`` share."""
    parser.add_argument(
        "--chunk-dict", type=dictionary, metavar="[bootstrap=]FILE",
        help="refer to the chunks of this image instead of storing them again",
    )  # fmt: skip
    parser.add_argument(
        "--parent-bootstrap", type=file_path, metavar="FILE", help="the image below the sources"
    )
    add_config(parser)
    add_prefetch(parser)
    add_common(parser)


def dictionary(text: str) -> Path:
    kind, equals, path = text.partition("=")
    if equals and kind != "bootstrap" and "/" not in kind:
        raise argparse.ArgumentTypeError(f"{kind!r} is not a kind of dictionary: bootstrap=FILE")
    return file_path(path if kind == "bootstrap" and equals else text)


def add_prefetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prefetch-policy", choices=("fs", "blob", "none"), default="none",
        help="paths from standard input, one a line: their data come first in the blob (blob),"
        " and are named in the image's prefetch table (fs)",
    )  # fmt: skip


def read_prefetch(args: argparse.Namespace) -> list[bytes]:
    if args.prefetch_policy == "none":
        return []
    return [line.strip() for line in sys.stdin.buffer.read(_PREFETCH_MAX).splitlines()]


def new_bootstrap(args: argparse.Namespace) -> Path:
    """Where a bootstrap goes: a file, or the directory in which its sha256 names it."""
    target: Path | None = args.bootstrap or args.blob_dir
    if target is None:
        raise UsageError("where does the bootstrap go? give --bootstrap FILE, or --blob-dir")
    if args.bootstrap is None and not target.is_dir():
        raise UsageError(f"{target} is not a directory: make it first")
    return target


# -- output -----------------------------------------------------------------------------------


def say(args: argparse.Namespace, text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr if _stdout_has_data(args) else sys.stdout)


def report(
    args: argparse.Namespace, *, bootstrap: Path | None, blobs: Sequence[str], compressor: str,
    extra: Mapping[str, object] | None = None,
) -> None:  # fmt: skip
    """Say what was made; write the JSON when asked to, with ``extra`` members of our own."""
    say(args, f"bootstrap: {bootstrap or '(inside the blob)'}")
    for blob in blobs:
        say(args, f"blob: {blob}")
    if args.output_json is None:
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
    write_json(args.output_json, document)


def write_json(target: Path, document: object) -> None:
    """To a file; to standard output when ``target`` is "-"."""
    import json  # noqa: PLC0415 - as the next: few commands write a report

    from rafs_v6.writer.blob_file import write_atomically  # noqa: PLC0415

    text = json.dumps(document, indent=2) + "\n"
    if str(target) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(target, (text.encode(),))


def _stdout_has_data(args: argparse.Namespace) -> bool:
    paths = (getattr(args, name, None) for name in _OUTPUTS)
    return any(path is not None and (str(path) == "-" or _is_stdout(path)) for path in paths)


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False
