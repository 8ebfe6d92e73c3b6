"""What ``ls``, ``cat`` and ``stat`` share: opening an image and describing what is in it.

Nothing here needs a daemon, a mount or privileges.  The JSON of an entry is a
contract: names of fields stay, new ones may come.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import rafs_v6
from nydus_fscache.errors import BadImage, FscacheError, UsageError
from rafs_v6.reader.locate import locate_bootstrap
from rafs_v6.reader.resolve import resolve as resolve_path
from rafs_v6.validate import validate

_KINDS = {
    stat.S_IFREG: "reg",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "lnk",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
}

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ELOOP: "too many symbolic links",
}


def open_bootstrap(path: Path) -> tuple[rafs_v6.Bootstrap, bool]:
    """The validated bootstrap, and whether it was found inside a blob."""
    try:
        if not path.is_file():
            raise UsageError(
                f"{path} is {'no file' if path.exists() else 'not there'}",
                hint="name a bootstrap (image.boot) or a blob with one inside",
            )
        bootstrap, inside = locate_bootstrap(path)
        validate(bootstrap)
    except rafs_v6.UnsupportedImage as e:
        raise BadImage(f"{path}: {e}", hint="build it with nydus-image --fs-version 6") from e
    except rafs_v6.ImageError as e:
        raise BadImage(f"{path}: {e}", hint="build or pull the image again") from e
    return bootstrap, inside


# -- paths -----------------------------------------------------------------------------------------


def resolve(
    bootstrap: rafs_v6.Bootstrap, path: str, *, follow: bool
) -> tuple[bytes, rafs_v6.Inode]:
    """Path without links and dots, and inode, as a process in a chroot of the image would get
    them; ``follow``: the last component too."""
    try:
        return resolve_path(bootstrap, os.fsencode(path), follow=follow)
    except OSError as e:
        reason = _REASONS.get(e.errno or 0, e.strerror)
        hint = "nydus-fscache ls -R shows all paths"
        raise FscacheError(f"{path}: {reason}", hint=hint) from None


# -- entries ---------------------------------------------------------------------------------------


def entry_type(inode: rafs_v6.Inode) -> str:
    """"reg", "dir", "lnk" and so on."""
    return _KINDS[stat.S_IFMT(inode.mode)]


def describe(bootstrap: rafs_v6.Bootstrap, path: bytes, inode: rafs_v6.Inode) -> dict[str, Any]:
    """One entry as JSON: sizes in bytes, mtime in seconds, values of xattrs in hex."""
    kind = entry_type(inode)
    entry: dict[str, Any] = {
        "path": path.decode("utf-8", "surrogateescape"),
        "type": kind,
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "mtime": inode.mtime,
    }
    if kind != "dir":
        entry["nlink"] = inode.nlink
    if kind in ("chr", "blk"):
        entry["rdev"] = f"{os.major(inode.rdev)}:{os.minor(inode.rdev)}"
    if kind == "lnk":
        entry["target"] = bootstrap.read_link(inode).decode("utf-8", "surrogateescape")
    if kind == "reg":
        entry["size"] = inode.size
    xattrs = bootstrap.xattrs(inode)
    if xattrs:
        entry["xattrs"] = {n.decode("utf-8", "surrogateescape"): v.hex() for n, v in xattrs.items()}
    return entry
