"""What an image's files are, without unpacking or mounting it: OCI layers, or a RAFS image.

Layers are read in one pass each, lowest first, as container run-times apply
them; data are only hashed.  Nothing here shares code with the builder.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace

import rafs_v6
from nydus_fscache.convert.errors import Stopped
from nydus_fscache.errors import BadImage
from nydus_fscache.registry.inflate import Inflate
from nydus_fscache.registry.manifest import Descriptor
from nydus_fscache.registry.store import PIECE, BlobStore, check_blob
from rafs_v6.values import dataclass

_XATTR = "SCHILY.xattr."
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_WINDOW = 4 << 20
_WINDOWS = 8
_KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """All that is compared of one path.  ``hash``: sha256 of a regular file's data."""

    size: int
    mode: int
    rdev: int
    symlink: bytes
    uid: int
    gid: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    hash: str

    def shown(self, path: str) -> str:
        names = ", ".join(f"{k!r}: {v!r}" for k, v in self.xattrs)
        return (
            f"path: {path}, size: {self.size}, mode: {self.mode:o}, rdev: {self.rdev}, "
            f"symlink: {self.symlink!r}, uid: {self.uid}, gid: {self.gid}, "
            f"xattrs: {{{names}}}, hash: {self.hash}"
        )


Tree = dict[str, Node]  # by absolute path; without the root


def tree_of_layers(
    store: BlobStore, layers: Iterable[Descriptor], stopped: Callable[[], bool]
) -> Tree:
    """``BadImage`` for a layer that does not read, or whose digest is wrong."""
    tree: Tree = {}
    for layer in layers:
        source = _Plain(store, layer, stopped)
        upper: Tree = {}
        hidden: list[tuple[str, bool]] = []
        try:
            # "r|" reads once, from the beginning to the end.
            with tarfile.open(
                fileobj=io.BufferedReader(source, PIECE), mode="r|", encoding="utf-8",
                errors="surrogateescape",
            ) as tar:  # fmt: skip
                for info in tar:
                    _add(tar, info, tree, upper, hidden)
                    tar.members.clear()  # type: ignore[attr-defined] # or all headers stay
            source.finish()
        except (tarfile.TarError, EOFError) as e:
            raise BadImage(f"layer {layer.digest}: the tar does not parse: {e}") from e
        finally:
            source.close()
        _apply(tree, upper, hidden)
    return tree


class _Plain(io.RawIOBase):
    """The tar of a layer; verified when it is read to its end."""

    def __init__(self, store: BlobStore, layer: Descriptor, stopped: Callable[[], bool]) -> None:
        self._layer, self._stopped = layer, stopped
        self._stream = store.open_blob(layer.digest, layer.size)
        self._sha256, self._inflate = hashlib.sha256(), Inflate()
        self._size = 0
        self._buf = memoryview(bytearray(PIECE))
        self._pieces: Iterator[bytes] = self._read_all()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buf: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buf), len(self._rest))
        buf[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _read_all(self) -> Iterator[bytes]:
        while count := self._stream.readinto(self._buf):
            if self._stopped():
                raise Stopped("stopped")
            data = bytes(self._buf[:count])
            self._sha256.update(data)
            self._size += count
            yield from self._inflate.feed(data)
        self._inflate.end()

    def finish(self) -> None:
        """Padding behind the tar counts for the digest, too."""
        for _ in self._pieces:
            pass
        check_blob(self._layer, f"sha256:{self._sha256.hexdigest()}", self._size)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _add(
    tar: tarfile.TarFile, info: tarfile.TarInfo, lower: Tree, upper: Tree,
    hidden: list[tuple[str, bool]],
) -> None:  # fmt: skip
    path = _normal(info.name)
    if path == "/":
        return
    directory, _, name = path.rpartition("/")
    if name == _OPAQUE:
        hidden.append((directory, True))
        _implied(directory, lower, upper)  # of a whiteout, too, as containerd does
        return
    if name.startswith(_WHITEOUT):
        hidden.append((f"{directory}/{name.removeprefix(_WHITEOUT)}", False))
        _implied(directory, lower, upper)
        return
    if info.islnk():
        there = _normal(info.linkname)
        linked = upper.get(there) or lower.get(there)
        if linked is None:
            raise BadImage(f"{path}: a hard link to {there}, which is not there")
        _implied(directory, lower, upper)
        upper[path] = linked
        return
    _implied(directory, lower, upper)
    upper[path] = _node(tar, info)


def _implied(directory: str, lower: Tree, upper: Tree) -> None:
    """Directories that a tar does not list."""
    while directory and directory not in upper and directory not in lower:
        upper[directory] = Node(0, stat.S_IFDIR | 0o755, 0, b"", 0, 0, (), "")
        directory = directory.rpartition("/")[0]


def _node(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Node:
    kind = _KINDS.get(info.type, stat.S_IFREG)
    digest, size, rdev = "", 0, 0
    if kind == stat.S_IFREG:
        size, digest = info.size, _hash(tar, info)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        rdev = _device(info)
    target = _raw(info.linkname) if kind == stat.S_IFLNK else b""
    xattrs = sorted(
        (_raw(k.removeprefix(_XATTR)), _raw(v))
        for k, v in info.pax_headers.items() if k.startswith(_XATTR)
    )  # fmt: skip
    return Node(
        len(target) if target else size, kind | info.mode & 0o7777, rdev, target,
        info.uid, info.gid, tuple(xattrs), digest,
    )  # fmt: skip


def _device(info: tarfile.TarInfo) -> int:
    try:
        return os.makedev(info.devmajor, info.devminor)
    except (OverflowError, ValueError):
        raise BadImage(f"{info.name!r}: a device of numbers that there are not") from None


def _hash(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    sha256 = hashlib.sha256()
    file = tar.extractfile(info)
    assert file is not None
    while piece := file.read(PIECE):
        sha256.update(piece)
    return sha256.hexdigest()


def _apply(tree: Tree, upper: Tree, hidden: list[tuple[str, bool]]) -> None:
    """Whiteouts hide what lower layers have, never their own layer's.

    The tree is gone through once, however many there are.
    """
    gone = {path for path, opaque in hidden if not opaque}
    emptied = {path for path, opaque in hidden if opaque}
    files = {path for path, node in upper.items() if not stat.S_ISDIR(node.mode)}
    if gone or emptied or files:
        for path in [p for p in tree if p in gone or _below(p, gone, emptied, files)]:
            del tree[path]
    # What an entry of the same tar put in the place of its directory.
    for path in [p for p in upper if _below(p, files)]:
        del upper[path]
    tree.update(upper)


def _below(path: str, *directories: Set[str]) -> bool:
    while path := path.rpartition("/")[0]:
        if any(path in one for one in directories):
            return True
    return any("" in one for one in directories)  # the root's own whiteout


def _normal(name: str) -> str:
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        raise BadImage(f"{name!r} leaves the root", hint="a hostile image?")
    return "/" + "/".join(parts)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Windows:
    """Reads of blobs in large pieces: neighbours come with what was asked for."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._sizes: dict[str, int] = {}
        self._windows: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def size(self, blob_id: str) -> int:
        if blob_id not in self._sizes:
            size = self._store.has_blob(f"sha256:{blob_id}")
            if size is None:
                raise BadImage(f"blob {blob_id} is not there", hint="push the image again")
            self._sizes[blob_id] = size
        return self._sizes[blob_id]

    def read_at(self, blob_id: str, off: int, length: int) -> bytes:
        out = bytearray()
        while length > 0:
            begin = off - off % _WINDOW
            data = self._window(blob_id, begin)
            piece = data[off - begin : off - begin + length]
            if not piece:
                raise BadImage(f"blob {blob_id} ends at {off}", hint="push the image again")
            out += piece
            off, length = off + len(piece), length - len(piece)
        return bytes(out)

    def _window(self, blob_id: str, begin: int) -> bytes:
        key = blob_id, begin
        if key in self._windows:
            self._windows.move_to_end(key)
            return self._windows[key]
        size = min(_WINDOW, self.size(blob_id) - begin)
        data = self._store.read_at(f"sha256:{blob_id}", begin, size) if size > 0 else b""
        self._windows[key] = data
        if len(self._windows) > _WINDOWS:
            self._windows.popitem(last=False)
        return data


def tree_of_rafs(boot: bytes, store: BlobStore, stopped: Callable[[], bool]) -> Tree:
    """``RafsError`` for an image that is wrong: every chunk is verified."""
    windows = Windows(store)
    with rafs_v6.open(boot, blobs=rafs_v6.Blobs(windows.read_at, windows.size)) as image:
        return _tree(image, stopped)


def _tree(image: rafs_v6.Image, stopped: Callable[[], bool]) -> Tree:
    tree: Tree = {}
    hashes: dict[int, str] = {}
    for path, inode in image.walk():
        if stopped():
            raise Stopped("stopped")
        name = path.decode("utf-8", "surrogateescape")
        if name == "/":
            continue
        target = image.bootstrap.read_link(inode) if inode.is_symlink else b""
        digest = ""
        if inode.is_reg:
            if inode.nid not in hashes:
                sha256 = hashlib.sha256()
                for piece in image.iter_file(inode):
                    sha256.update(piece)
                hashes[inode.nid] = sha256.hexdigest()
            digest = hashes[inode.nid]
        node = Node(
            inode.size, inode.mode, inode.rdev, target, inode.uid, inode.gid,
            tuple(sorted(image.xattrs(inode).items())), digest,
        )  # fmt: skip
        tree[name] = replace(node, size=0) if inode.is_dir else node
    return tree
