"""Random trees by random options: the kernel, rafs_v6 and a tar and back show what was there.

``NYDUS_EXAMPLES`` asks for more of them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from build_kit import flatten, image_tree, mounted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rafs_v6
from rafs_v6.cli import main

_EXAMPLES = int(os.environ.get("NYDUS_EXAMPLES", "15"))
_FIRST_S, _LAST_S = -(1 << 31), 1 << 33  # of ext4: 1901 to 2242


@dataclass
class _File:
    """``parts``: a byte repeated, or a hole (None), and how often."""

    parts: list[tuple[int | None, int]]
    mode: int
    mtime_ns: int
    xattrs: dict[str, bytes]


@dataclass
class _Special:
    kind: int
    rdev: int


_names = st.binary(min_size=1, max_size=255).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)
_files = st.builds(
    _File,
    parts=st.lists(
        st.tuples(
            st.none() | st.integers(0, 255),
            st.integers(1, 20_000) | st.sampled_from([4095, 4096, 4097, 65536]),
        ),
        max_size=4,
    ),
    mode=st.integers(0, 0o7777),
    mtime_ns=st.integers(_FIRST_S * 10**9, _LAST_S * 10**9),
    xattrs=st.dictionaries(
        st.text("abz.\u00e9", min_size=1, max_size=20).map("user.".__add__),
        st.binary(max_size=300), max_size=3,
    ),
)  # fmt: skip
_links = st.binary(min_size=1, max_size=4000).filter(lambda t: b"\0" not in t)
_specials = st.builds(
    _Special,
    kind=st.sampled_from([stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]),
    rdev=st.builds(os.makedev, st.integers(1, 4095), st.integers(0, (1 << 20) - 1)),
)
_entries = st.recursive(
    _files | _links | _specials,
    lambda below: st.dictionaries(_names, below, max_size=8),
    max_leaves=25,
)
_options = st.tuples(
    st.sampled_from(["none", "lz4_block", "zstd"]).map(lambda c: ["--compressor", c]),
    st.sampled_from(["blake3", "sha256"]).map(lambda d: ["--digester", d]),
    st.sampled_from(["0x1000", "0x10000", "0x1000000"]).map(lambda s: ["--chunk-size", s]),
    st.sampled_from([[], ["--batch-size", "0x1000"]]),
    st.sampled_from([[], ["--encrypt"]]),
    st.sampled_from([[], ["--features", "blob-toc"]]),
).map(lambda words: [word for part in words for word in part])


def _make(path: bytes, entry: object, regular: list[bytes]) -> None:
    if isinstance(entry, dict):
        os.mkdir(path)
        for name, below in entry.items():
            _make(path + b"/" + name, below, regular)
    elif isinstance(entry, bytes):
        os.symlink(entry, path)
    elif isinstance(entry, _Special):
        os.mknod(path, entry.kind | 0o600, 0 if stat.S_ISFIFO(entry.kind) else entry.rdev)
    elif isinstance(entry, _File):
        with open(path, "wb") as f:
            for byte, count in entry.parts:
                if byte is None:
                    f.seek(count, os.SEEK_CUR)
                else:
                    f.write(bytes([byte]) * count)
            f.truncate(f.tell())
        for key, value in entry.xattrs.items():
            os.setxattr(path, key, value)
        os.chmod(path, entry.mode)
        os.utime(path, ns=(0, entry.mtime_ns))
        regular.append(path)


def _shown(root: Path) -> dict[bytes, tuple[object, ...]]:
    out = {}
    top = os.fsencode(root)
    for where, dirs, files in os.walk(top):
        for name in [*dirs, *files]:
            path = where + b"/" + name
            st_ = os.lstat(path)
            kind = stat.S_IFMT(st_.st_mode)
            data = Path(os.fsdecode(path)).read_bytes() if kind == stat.S_IFREG else b""
            out[path[len(top) :]] = (
                st_.st_mode, st_.st_uid, st_.st_gid, st_.st_mtime_ns, st_.st_rdev, data,
                st_.st_nlink if kind == stat.S_IFREG else 0,
                os.readlink(path) if kind == stat.S_IFLNK else b"",
                {k: os.getxattr(path, k, follow_symlinks=False)
                 for k in os.listxattr(path, follow_symlinks=False)},
            )  # fmt: skip
    return out


@settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tree=st.dictionaries(_names, _entries, max_size=12),
    hard=st.lists(st.tuples(_names, st.integers(0, 100)), max_size=4),
    options=_options,
)
def test_what_was_there_is_shown(
    tree: dict[bytes, object], hard: list[tuple[bytes, int]], options: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    base = tmp_path_factory.mktemp("random")
    source, blobs, regular = base / "source", base / "blobs", list[bytes]()
    _make(os.fsencode(source), tree, regular)
    for name, which in hard:
        path = os.fsencode(source) + b"/" + name
        if regular and not os.path.lexists(path):
            os.link(regular[which % len(regular)], path)
    want = _shown(source)
    boot, blob = base / "boot", blobs / "blob"
    blobs.mkdir()
    create = ["create", "-B", str(boot), "-D", str(blobs), "--whiteout-spec", "none", *options]
    assert main([*create, str(source)]) == 0

    image = rafs_v6.open(boot, blobs=blobs)
    for path, entry in want.items():
        inode = image.lookup(path)
        assert inode.mode == entry[0]
        if inode.is_reg:
            assert image.read(path) == entry[5]
    with mounted(boot, flatten(image, blobs, base), base / "mnt") as at:
        assert _shown(at) == want
    tar, again = base / "tar", base / "again"
    assert main(["unpack", str(boot), "-D", str(blobs), "--output", str(tar)]) == 0
    plain = ["--whiteout-spec", "none", "-t", "tar-rafs"]  # a name is a name, whatever it says
    assert main(["create", *plain, "-B", str(again), "-b", str(blob), str(tar)]) == 0
    second = rafs_v6.open(again)
    if second.bootstrap.blobs:
        blob.rename(blobs / second.bootstrap.blobs[0].blob_id)
    second = rafs_v6.open(again, blobs=blobs)
    assert image_tree(second) == image_tree(image)
    assert {p: i.mtime_nsec for p, i in second.walk()} == {p: i.mtime_nsec for p, i in image.walk()}
