"""Questions about a bootstrap, answered as values that JSON can hold.

The commands are the original's ``inspect``: stats, ls, cd, stat, blobs,
prefetch, chunk, icheck.  Inode numbers are nids, as the kernel shows them.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable

from rafs_v6.errors import shown
from rafs_v6.format.erofs import BlobFeatures, SuperFlags
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.inode import Inode


class BadQuestion(ValueError):
    """No such command, or an argument that it cannot take; the message says which it takes."""


Answer = dict[str, object] | list[dict[str, object]]


class Inspector:
    """Has a current directory, as the original has."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self._b = bootstrap
        self.directory = "/"

    def answer(self, line: str) -> Answer:
        """One command with its argument.  ``BadQuestion``, ``ImageError``."""
        word, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], Answer]] = {
            "stats": lambda _: self._stats(),
            "ls": self._ls,
            "cd": self._cd,
            "stat": self._stat,
            "blobs": lambda _: self._blobs(),
            "prefetch": lambda _: self._prefetch(),
            "chunk": self._chunk,
            "icheck": self._icheck,
        }
        command = commands.get(word)
        if command is None:
            raise BadQuestion(f"no command {word!r}; there are {', '.join(commands)}")
        return command(rest.strip())

    def _lookup(self, path: str) -> Inode:
        try:
            return self._b.lookup(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BadQuestion(f"{path} is not in the image") from None

    def _directory(self, path: str) -> Inode:
        inode = self._lookup(path)
        if not inode.is_dir:
            raise BadQuestion(f"{path} is no directory")
        return inode

    def _path(self, name: str) -> str:
        return posixpath.normpath(posixpath.join(self.directory, name))

    def _stats(self) -> Answer:
        tables = self._b.tables
        ext = tables.ext
        return {
            "inodes_count": tables.super_block.inos,
            "version": 6,
            "chunk_size": self._b.chunk_size,
            "block_size": self._b.block_size,
            "root_inode": self._b.root.nid,
            "flags": [f.name for f in SuperFlags if tables.flags & f],
            "blob_table_offset": ext.blob_table_offset,
            "blob_table_size": ext.blob_table_size,
            "prefetch_table_offset": ext.prefetch_table_offset,
            "prefetch_table_entries": len(self._b.prefetch_nids),
            "chunk_table_offset": ext.chunk_table_offset,
            "chunk_table_size": ext.chunk_table_size,
        }

    def _ls(self, name: str) -> Answer:
        return [
            {
                "type": _kind(child),
                "inode": child.nid,
                "name": shown(entry.name),
                "size": child.size,
            }
            for entry in self._b.read_dir(self._directory(self._path(name)))
            if entry.name not in (b".", b"..")
            for child in (self._b.inode(entry.nid),)
        ]

    def _cd(self, name: str) -> Answer:
        self._directory(path := self._path(name or "/"))
        self.directory = path
        return {"directory": path}

    def _stat(self, name: str) -> Answer:
        if not name:
            raise BadQuestion("stat of which file? stat NAME")
        path = self._path(name)
        return self._describe(path, self._lookup(path))

    def _describe(self, path: str, inode: Inode) -> dict[str, object]:
        out: dict[str, object] = {
            "path": path,
            "inode": inode.nid,
            "type": _kind(inode),
            "size": inode.size,
            "mode": f"0x{inode.mode:04X}",
            "permissions": f"{inode.mode:o}",
            "nlink": inode.nlink,
            "uid": inode.uid,
            "gid": inode.gid,
            "mtime": inode.mtime,
            "mtime_nsec": inode.mtime_nsec,
            "xattrs": {shown(k): v.hex() for k, v in self._b.xattrs(inode).items()},
        }
        if inode.is_symlink:
            out["target"] = shown(self._b.read_link(inode))
        elif inode.is_reg:
            out["chunks"] = [
                {
                    "blob_index": ref.blob_index,
                    "index": ref.chunk_index,
                    "decompressed_offset": ref.flat_off,
                    "size": ref.size,
                }
                for ref in self._b.chunks(inode)
            ]
        elif inode.rdev:
            out["device"] = f"{os.major(inode.rdev)}:{os.minor(inode.rdev)}"
        return out

    def _blobs(self) -> Answer:
        return [
            {
                "blob_id": blob.blob_id,
                "readahead_offset": 0,
                "readahead_size": 0,
                "decompressed_size": blob.uncompressed_size,
                "compressed_size": blob.compressed_size,
                "index": blob.index,
                "meta_blob_id": blob.meta_blob_id,
                "compressed_data_size": blob.data_size,
                "features": [f.name for f in BlobFeatures if blob.features & f],
                "compressor": blob.compressor.name.lower(),
                "digester": blob.digester.name.lower(),
                "cipher": blob.cipher.name.lower(),
                "chunk_size": blob.chunk_size,
                "chunk_count": blob.chunk_count,
                "meta_compressor": blob.ci_compressor.name.lower(),
                "meta_offset": blob.ci_offset,
                "meta_compressed_size": blob.ci_compressed_size,
                "meta_uncompressed_size": blob.ci_uncompressed_size,
                "toc_digest": blob.toc_digest.hex() if any(blob.toc_digest) else "",
                "toc_size": blob.toc_size,
            }
            for blob in self._b.blobs
        ]

    def _prefetch(self) -> Answer:
        wanted = set(self._b.prefetch_nids)
        names: dict[int, list[str]] = {}
        for path, inode in self._b.walk():
            if inode.nid in wanted:
                slash = "/" if inode.is_dir and path != b"/" else ""
                names.setdefault(inode.nid, []).append(shown(path) + slash)
        return [{"inode": nid, "path": names.get(nid, [])} for nid in self._b.prefetch_nids]

    def _chunk(self, argument: str) -> Answer:
        """Chunks that hold the compressed byte, of any blob, and the files that use them."""
        offset = _number(argument, "chunk OFFSET")
        found: dict[tuple[int, int], dict[str, object]] = {}
        for _, r in self._b.chunk_records():
            compressed_end = r.compressed_offset + max(r.compressed_size, 1)
            if r.compressed_offset <= offset < compressed_end:
                found[r.blob_index, r.index] = {
                    "blob_id": self._b.blobs[r.blob_index].blob_id,
                    "index": r.index,
                    "digest": r.digest.hex(),
                    "compressed_offset": r.compressed_offset,
                    "compressed_size": r.compressed_size,
                    "decompressed_offset": r.uncompressed_offset,
                    "decompressed_size": r.uncompressed_size,
                }
        files: dict[tuple[int, int], list[str]] = {key: [] for key in found}
        for path, inode in self._b.walk():
            if found and inode.is_reg:
                for key in {(c.blob_index, c.chunk_index) for c in self._b.chunks(inode)}:
                    if key in files:
                        files[key].append(shown(path))
        return [chunk | {"files": files[key]} for key, chunk in found.items()]

    def _icheck(self, argument: str) -> Answer:
        nid = _number(argument, "icheck INODE")
        return [
            self._describe(shown(path), inode)
            for path, inode in self._b.walk() if inode.nid == nid
        ]  # fmt: skip


def _number(text: str, usage: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise BadQuestion(f"{text!r} is not a number: {usage}") from None


def _kind(inode: Inode) -> str:
    return stat.filemode(inode.mode)[0]
