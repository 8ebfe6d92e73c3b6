"""``nydus-image check``: bootstrap and blobs; every fault, with its place and the next step."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rafs_v6.cli._common import add_common, at_least, examples, progress_line, report, say
from rafs_v6.cli._images import add_blobs, add_bootstrap, bootstrap_path, open_blobs
from rafs_v6.errors import shown
from rafs_v6.tools.blobs import is_dictionary
from rafs_v6.tools.check.image import CheckReport, check_image, hint
from rafs_v6.writer.errors import BuildError

EXAMPLES = """\
  nydus-image check image.boot
  nydus-image check image.boot --blob-dir blobs/ --output-json report.json
  nydus-image check image.boot --backend-type registry \\
      --backend-config '{"host": "registry.example", "repo": "team/app"}'
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "check", help="find what is wrong with an image", **examples(EXAMPLES)
    )
    add_bootstrap(parser)
    add_blobs(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="list the tree too")
    parser.add_argument("--threads", type=at_least(0), default=0, help="0: one a processor")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    path = bootstrap_path(args)
    with open_blobs(args) as blobs, progress_line("checked") as progress:
        found = check_image(path, blobs, threads=args.threads, progress=progress)
    for fault in found.faults:
        print(f"{fault.name}: {fault.place}: {fault.text}", file=sys.stderr)
    for step in dict.fromkeys(map(hint, found.faults)):
        print(f"hint: {step}", file=sys.stderr)
    dictionary = found.bootstrap is not None and is_dictionary(found.bootstrap)
    if dictionary:
        say(args, "a dictionary of chunks, not an image to mount: its tree was not looked at")
    if args.verbose and not dictionary and found.bootstrap is not None and not found.faults:
        for name, inode in found.bootstrap.walk():
            say(args, f"{inode.mode:06o} {inode.size:12} {shown(name)}")
    _report(args, path, found)
    if found.faults:
        count = len(found.faults) + found.more
        raise BuildError(f"{path}: {count} fault{'s' if count > 1 else ''}")


def _report(args: argparse.Namespace, path: Path, found: CheckReport) -> None:
    infos = () if found.bootstrap is None else found.bootstrap.blobs
    data = found.data
    if data is not None:
        say(args, f"chunks: {data.chunks}, {data.decoded} bytes; without digest: {data.unverified}")
    else:
        say(args, "chunks: not looked at, no --blob-dir and no backend given")
    extra = {
        "faults": [
            {"name": f.name, "place": f.place, "text": f.text, "hint": hint(f)}
            for f in found.faults
        ],
        "faults_left_out": found.more,
        "checked": None
        if data is None
        else {
            "chunks": data.chunks, "bytes": data.decoded, "bytes_without_digest": data.unverified,
        },
    }  # fmt: skip
    report(
        args, bootstrap=path, blobs=[b.blob_id for b in infos],
        compressor=",".join(sorted({b.compressor.name.lower() for b in infos})), extra=extra,
    )  # fmt: skip
