"""``ls``: what is in an image, from its bootstrap alone."""

from __future__ import annotations

import argparse
import json
import os
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nydus_fscache.cli.fscache.common import add_bootstrap
from nydus_fscache.cli.output import printable

if TYPE_CHECKING:
    import rafs_v6

NAME = "ls"
HELP = "list what is in an image, without mounting it"
EXAMPLES = """\
examples:
  nydus-fscache ls image.boot
  nydus-fscache ls -l image.boot /usr/bin
  nydus-fscache ls -R --json image.boot | jq -r 'select(.type == "reg") | .path'
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="List a directory of an image, or one entry. Needs neither blobs nor root.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bootstrap(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="default: /")
    parser.add_argument("-l", dest="long", action="store_true", help="one line with all attributes")
    parser.add_argument(
        "-R", dest="recursive", action="store_true", help="everything below, with full paths"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.cli.fscache.image_files import describe, open_bootstrap, resolve  # noqa: PLC0415 - quick --help

    bootstrap, _ = open_bootstrap(args.bootstrap)
    path, inode = resolve(bootstrap, args.path, follow=not args.long)
    for found, entry in _entries(bootstrap, path, inode, recursive=args.recursive):
        if args.json:
            print(json.dumps(describe(bootstrap, found, entry), sort_keys=True))
            continue
        bare = found if args.recursive or found == path else os.path.basename(found)
        name = printable(bare)
        print(_long(bootstrap, name, entry) if args.long else name)
    return 0


def _entries(
    bootstrap: rafs_v6.Bootstrap, path: bytes, inode: rafs_v6.Inode, *, recursive: bool
) -> Iterator[tuple[bytes, rafs_v6.Inode]]:
    """(full path, inode): of a directory what is in it, of all else the entry itself."""
    if recursive:
        below = path if path == b"/" else path + b"/"
        for found, entry in bootstrap.walk():
            if found == path or found.startswith(below):
                yield found, entry
    elif not inode.is_dir:
        yield path, inode
    else:
        for dirent in bootstrap.read_dir(inode):
            if dirent.name not in (b".", b".."):
                yield os.path.join(path, dirent.name), bootstrap.inode(dirent.nid)


def _long(bootstrap: rafs_v6.Bootstrap, name: str, inode: rafs_v6.Inode) -> str:
    size = str(inode.size)
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        size = f"{os.major(inode.rdev)},{os.minor(inode.rdev)}"
    if inode.is_symlink:
        name += f" -> {printable(bootstrap.read_link(inode))}"
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(inode.mtime))
    return (
        f"{stat.filemode(inode.mode)} {inode.nlink:>3} {inode.uid:>5} {inode.gid:>5} "
        f"{size:>10} {when} {name}"
    )
