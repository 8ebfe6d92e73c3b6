"""``mount.erofs.nydus``: the helper that mount(8) runs for the type ``erofs.nydus``.

So an image can be mounted by ``mount -t erofs.nydus IMAGE DIRECTORY`` and by a line of fstab.  It
says by ``nydus-fscache mount`` what the options say, and means the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from nydus_fscache.errors import UsageError

PROG = "mount.erofs.nydus"
_VALUES = {
    "blob_dir": "--blob-dir", "backend": "--backend", "transport": "--transport",
    "prefetch": "--prefetch", "cache_limit": "--cache-limit", "root": "--root",
}  # fmt: skip
_FLAGS = {"plain_http": "--plain-http"}
# what mount(8) and systemd say to each other, or what a mount of ours is in any case; mount(8) adds
# rw by itself when nobody has asked for ro
_IGNORED = {
    "ro", "rw", "defaults", "auto", "noauto", "nofail", "_netdev", "nouser", "nousers", "noowner",
    "nogroup", "suid", "dev", "exec", "async", "atime", "noatime", "nodiratime", "relatime",
}  # fmt: skip
_EXAMPLES = """\
examples:
  mount -t erofs.nydus registry.example/app:1.2-nydus /mnt/app
  mount -t erofs.nydus image.boot /mnt/app -o blob_dir=/srv/blobs

In /etc/fstab, _netdev has it wait for the network, and x-systemd.requires for the daemon's unit,
which is stopped after the mount is gone (one line):

  registry.example/app:1.2-nydus  /mnt/app  erofs.nydus
      _netdev,nofail,x-systemd.requires=nydus-fscache.service  0  0

Options of its own are blob_dir=DIR, backend=FILE, plain_http, transport=T, prefetch=P,
cache_limit=SIZE and root=DIR, with the meaning that they have for nydus-fscache mount. A comma in
a value is written as \\054.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=PROG,
        description="Mount a container image that is loaded lazily. To be run by mount(8).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("image", metavar="IMAGE", help="a bootstrap, or HOST/REPO:TAG")
    made.add_argument("mountpoint", metavar="MOUNTPOINT")
    made.add_argument(
        "-o", dest="options", metavar="OPTIONS", action="append", default=[],
        help="with commas between them",
    )  # fmt: skip
    made.add_argument("-t", dest="kind", metavar="TYPE", help="erofs.nydus")
    made.add_argument("-f", dest="fake", action="store_true", help="check, and mount nothing")
    made.add_argument("-s", dest="sloppy", action="store_true", help="pass over unknown options")
    made.add_argument("-v", dest="verbose", action="store_true", help="say what is done")
    made.add_argument("-n", dest="no_mtab", action="store_true", help="nothing: there is no mtab")
    made.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="refused")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    from nydus_fscache.cli.frame import guarded  # noqa: PLC0415 - quick --help

    return guarded(PROG, _run, argv)


def _run(words: list[str]) -> int:
    args = parser().parse_args(words)
    if args.namespace:
        raise UsageError("-N is not supported", hint="nsenter --mount=… mount …")
    image = args.image
    command = ["mount", *options_of(args.options, sloppy=args.sloppy)]
    if os.path.exists(image):
        image = os.path.realpath(image)
    command += [image, args.mountpoint]
    if args.verbose or args.fake:
        print("nydus-fscache", *command)
    if args.fake:
        return 0
    from nydus_fscache.cli.fscache.main import main as fscache  # noqa: PLC0415

    code = fscache(command)
    sys.stdout.flush()
    return code


def options_of(given: Sequence[str], *, sloppy: bool = False) -> list[str]:
    """Words of ``nydus-fscache mount``.  Raises ``UsageError``."""
    words: list[str] = []
    for option in ",".join(given).split(","):
        name, has_value, value = option.partition("=")
        value = value.replace("\\054", ",").replace("\\040", " ")
        if not name or name in _IGNORED or name.startswith(("x-", "X-", "comment")):
            continue
        if name in _VALUES and value:
            words += [_VALUES[name], value]
        elif name in _FLAGS and not has_value:
            words.append(_FLAGS[name])
        elif not sloppy:
            raise UsageError(
                f"{option!r} is not an option of {PROG}",
                hint=f"{', '.join([*(f'{n}=…' for n in _VALUES), *_FLAGS])}",
            )
    return words


if __name__ == "__main__":
    sys.exit(main())
