"""Compare a mounted tree with the golden list of what it must show."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"

_KINDS = {
    stat.S_IFREG: "reg",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "lnk",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
}


def golden_names() -> list[str]:
    images = GOLDEN / "images"
    return sorted(p.name for p in images.iterdir()) if images.is_dir() else ["layers-zstd"]


def shown(path: Path, *, with_data: bool = True) -> dict[str, Any]:
    """What the kernel shows of one path, in the terms of expected.jsonl."""
    status = path.lstat()
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    found: dict[str, Any] = {
        "type": kind,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime_ns // 10**9,
    }
    if kind != "dir":
        found["nlink"] = status.st_nlink
    if kind in ("chr", "blk"):
        found["rdev"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    if kind == "lnk":
        found["target"] = os.fsdecode(os.readlink(path))
    if kind == "reg":
        found["size"] = status.st_size
        if with_data:
            with path.open("rb") as f:
                found["sha256"] = hashlib.file_digest(f, "sha256").hexdigest()
    names = os.listxattr(path, follow_symlinks=False)
    if names:
        found["xattrs"] = {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in names}
    return found


def assert_tree(root: Path, expected_file: Path) -> None:
    """Entry for entry; an mtime of null in the list is not compared."""
    expected = {}
    for line in expected_file.read_text().splitlines():
        entry = json.loads(line)
        expected[entry.pop("path")] = entry
    paths = {"/"} | {
        "/" + os.path.relpath(os.path.join(top, name), root)
        for top, dirs, files in os.walk(os.fsencode(root).decode("utf-8", "surrogateescape"))
        for name in dirs + files
    }
    assert paths == set(expected)
    for path, entry in expected.items():
        found = shown(root / path.lstrip("/"))
        if entry["mtime"] is None:
            found["mtime"] = None
        assert found == entry, path
