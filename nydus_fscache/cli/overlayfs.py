"""``nydus-overlayfs``: the helper that ``mount -t fuse.nydus-overlayfs`` runs.

nydus-snapshotter marks root filesystems with this type, and adds options for Kata's runtime;
on a host without Kata the rest is a plain overlay, which is mounted here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nydus_fscache
from nydus_fscache.cli.frame import guarded
from nydus_fscache.errors import UsageError

PROG = "nydus-overlayfs"
# told to a runtime that prepares the image by itself, and nothing to the kernel
_FOR_RUNTIMES = ("extraoption=", "io.katacontainers.volume=")
_PATHS = ("lowerdir", "upperdir", "workdir")
_RESERVE = 512  # of the page that the kernel takes: containerd keeps as much
_USAGE = f"""\
usage: {PROG} overlay TARGET -o OPTIONS

Mount an overlay, without the options that are meant for Kata Containers (extraoption=…,
io.katacontainers.volume=…). To be run by mount -t fuse.{PROG}.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(PROG, _run, argv)


def _run(words: list[str]) -> int:
    if words in (["-h"], ["--help"], ["help"]):
        sys.stdout.write(_USAGE)
        return 0
    if words in (["-v"], ["--version"]):
        print(f"{PROG} {nydus_fscache.__version__}")
        return 0
    if len(words) != 4 or words[0] != "overlay" or words[2] != "-o":
        raise UsageError(
            f"{len(words)} words, and not: overlay TARGET -o OPTIONS", hint=f"{PROG} --help"
        )
    from nydus_fscache.kernel.overlay import mount_overlay  # noqa: PLC0415 - quick --help

    target = Path(words[1])
    if not target.is_dir():
        raise UsageError(f"{target} is not a directory", hint="name an empty directory")
    flags, options = split_options(words[3])
    if not any(option.startswith("lowerdir") for option in options):
        raise UsageError("no lowerdir among the options", hint="lowerdir=DIR[:DIR…]")
    directory, options = shortened(options, os.sysconf("SC_PAGE_SIZE") - _RESERVE)
    mount_overlay(target, flags, ",".join(options), directory)
    return 0


def split_options(text: str) -> tuple[int, list[str]]:
    """Flags of mount(2), and the options that the file system gets, in their order."""
    from nydus_fscache.kernel.overlay import FLAGS  # noqa: PLC0415 - quick --help

    flags, rest = 0, []
    for option in re.split(r"(?<!\\),", text):  # overlayfs escapes a comma in a name so
        if option in FLAGS:
            on, off = FLAGS[option]
            flags = (flags | on) & ~off
        elif option and not option.startswith(_FOR_RUNTIMES):
            rest.append(option)
    return flags, rest


def shortened(options: list[str], limit: int) -> tuple[str, list[str]]:
    """A directory to go to, and the options with their paths relative to it.

    Nothing is changed while they are shorter than ``limit`` bytes, or where it would not help.
    """
    if len(os.fsencode(",".join(options))) < limit:
        return "", options
    pairs = [option.partition("=")[::2] for option in options]
    paths = [p for name, value in pairs if name in _PATHS for p in _split_paths(name, value)]
    if not paths or not all(path.startswith("/") for path in paths):
        return "", options
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    if common == "/" or "\\" in common:  # nothing gained; an escaped name is not a real one
        return "", options
    short = []
    for option, (name, value) in zip(options, pairs, strict=True):
        if name in _PATHS:
            found = (path[len(common) + 1 :] for path in _split_paths(name, value))
            short.append(f"{name}={':'.join(found)}")
        else:
            short.append(option)
    return common, short


def _split_paths(name: str, value: str) -> list[str]:
    """Only ``lowerdir`` is a list; a colon in a name is escaped there."""
    return re.split(r"(?<!\\):", value) if name == "lowerdir" else [value]


if __name__ == "__main__":
    sys.exit(main())
