"""``nydus-image inspect``: look into a bootstrap, one question (-R, answered in JSON) or many."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from rafs_v6.cli._common import add_config, add_log, check_config, examples, file_path
from rafs_v6.cli._images import add_bootstrap, bootstrap_path
from rafs_v6.errors import ImageError
from rafs_v6.tools.blobs import load_bootstrap
from rafs_v6.tools.inspect import Answer, BadQuestion, Inspector
from rafs_v6.validate import validate
from rafs_v6.writer.errors import BuildError

HELP = """\
stats            the superblock and its tables
ls [DIR]         a directory
cd DIR           go there
stat NAME        an inode, its xattrs and chunks
blobs            the blob table
prefetch         the prefetch table
chunk OFFSET     the chunk that holds this compressed byte, and the files that use it
icheck INODE     the paths of an inode
exit, q          leave"""
EXAMPLES = """\
  nydus-image inspect image.boot --request blobs
  nydus-image inspect image.boot --request 'stat /etc/passwd' | jq .chunks
  nydus-image inspect image.boot
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect", help="look into a bootstrap, with a prompt or one question",
        **examples(f"{EXAMPLES}\ncommands:\n{HELP}"),
    )  # fmt: skip
    add_bootstrap(parser)
    parser.add_argument("-R", "--request", metavar="COMMAND", help="one command; answers in JSON")
    # An option of the original that a bootstrap alone does not need.
    parser.add_argument("-D", "--blob-dir", type=file_path, help=argparse.SUPPRESS)
    add_config(parser)
    add_log(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    check_config(args)
    bootstrap = load_bootstrap(bootstrap_path(args))
    validate(bootstrap)
    inspector = Inspector(bootstrap)
    if args.request is None:
        _prompt(inspector)
        return
    if args.request.strip() == "help":
        print(HELP)
        return
    try:
        print(json.dumps(inspector.answer(args.request)))
    except BadQuestion as error:
        raise BuildError(str(error)) from error


def _prompt(inspector: Inspector) -> None:
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - history and editing for input()
    while True:
        try:
            line = input(f"{inspector.directory} > " if terminal else "").strip()
        except EOFError:
            return
        if line in ("exit", "q"):
            return
        if line == "help":
            print(HELP)
        elif line:
            try:
                _show(inspector.answer(line))
            except (BadQuestion, ImageError) as error:
                print(f"{error}", file=sys.stderr)


def _show(answer: Answer) -> None:
    for item in answer if isinstance(answer, list) else [answer]:
        if item.keys() == {"type", "inode", "name", "size"}:
            print(f"{item['type']} {item['inode']:>10} {item['size']:>14} {item['name']}")
            continue
        width = max(map(len, item), default=0)
        for name, value in item.items():
            shown = value if isinstance(value, int | str) else json.dumps(value)
            print(f"{name:{width}}  {shown}")
        print()
