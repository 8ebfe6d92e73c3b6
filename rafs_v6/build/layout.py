"""A tree becomes the metadata region of a bootstrap: places, then bytes (sheet 1.6 - 1.15).

Places follow upstream's first-fit rule, so that inline data share blocks with
inodes.  Offsets here count from the region's start, which holds one empty block.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from rafs_v6.build.errors import BuildError
from rafs_v6.build.tree import Node, sorted_children, traverse, xattr_index
from rafs_v6.erofs import (
    CHUNK_INDEX,
    CHUNK_INDEX_SIZE,
    DIRENT,
    EROFS_BLOCK,
    EROFS_CHUNK_FORMAT_INDEXES,
    EROFS_DIRENT_SIZE,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EROFS_INODE_FLAT_PLAIN,
    EROFS_SLOTSIZE,
    EROFS_XATTR_IBODY_SIZE,
    XATTR_ENTRY,
    InodeExtended,
    round_up,
)

_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


@dataclass(slots=True)
class _Place:
    off: int
    data: int
    inline: bool
    ino: int
    nlink: int
    parent: Node


class Layout:
    """``Layout(root)`` finds the places; ``render`` writes them for a given ``meta_addr``.

    ``block``: 4096 bytes, or 512 for tarfs.  The region's empty start is 4096 for both.
    """

    def __init__(self, root: Node, block: int = EROFS_BLOCK) -> None:
        self._root = root
        self._block = block
        self._places: dict[int, _Place] = {}
        self._off = EROFS_BLOCK
        self._free: list[deque[int]] = [deque() for _ in range(block // EROFS_SLOTSIZE)]
        self.inos = 0
        self.has_xattr = False
        self._place_tree()
        self.size = round_up(self._off, EROFS_BLOCK)

    def nid(self, node: Node) -> int:
        return self._places[id(node)].off // EROFS_SLOTSIZE

    # -- places --------------------------------------------------------------------------------

    def _place_tree(self) -> None:
        parents = {id(self._root): self._root}
        for _, node in traverse(self._root):
            self.inos += 1
            for child in node.children.values():
                parents[id(child)] = node
            old = self._places.get(id(node))
            if old is not None:
                old.nlink += 1
                continue
            self.has_xattr |= bool(node.xattrs)
            place = _Place(0, 0, False, self.inos, 1, parents[id(node)])
            if node.is_dir:
                place.nlink = 2 + sum(c.is_dir for c in node.children.values())
                self._place_flat(place, node, _dir_size(node, self._block))
            elif node.is_symlink:
                self._place_flat(place, node, len(node.target))
            elif node.is_reg:
                body = round_up(InodeExtended.SIZE + _xattr_size(node), CHUNK_INDEX_SIZE)
                size = body + CHUNK_INDEX_SIZE * len(node.chunks)
                place.off = self._take_or_append(size)
            else:
                place.off = self._off
                self._off += InodeExtended.SIZE + _xattr_size(node)
            self._off = round_up(self._off, EROFS_SLOTSIZE)
            self._places[id(node)] = place

    def _place_flat(self, place: _Place, node: Node, size: int) -> None:
        body = InodeExtended.SIZE + _xattr_size(node)
        tail = size % self._block
        if tail and body + tail <= self._block:
            place.inline = True
            taken = self._take(body + tail)
            if taken is None:
                if self._block - self._off % self._block < body + tail:
                    self._next_block()
                taken = self._off
                self._off += body + tail
            place.off = taken
            if size != tail:
                self._next_block()
            place.data = self._off
            self._off += size - tail
        else:
            place.off = self._take_or_append(body)
            self._next_block()
            place.data = self._off
            self._off = round_up(self._off + size, self._block)

    def _take_or_append(self, size: int) -> int:
        taken = self._take(size)
        if taken is None:
            taken = self._off
            self._off += size
        return taken

    def _next_block(self) -> None:
        self._push(round_up(self._off, EROFS_SLOTSIZE))
        self._off = round_up(self._off, self._block)

    def _push(self, off: int) -> None:
        if off % self._block:
            block = off - off % self._block
            self._free[(self._block - off % self._block) // EROFS_SLOTSIZE].append(block)

    def _take(self, size: int) -> int | None:
        for slots in range(-(-size // EROFS_SLOTSIZE), self._block // EROFS_SLOTSIZE):
            if self._free[slots]:
                off = self._free[slots].popleft() + self._block - EROFS_SLOTSIZE * slots
                self._push(off + round_up(size, EROFS_SLOTSIZE))
                return off
        return None

    # -- bytes ---------------------------------------------------------------------------------

    def render(self, meta_addr: int, chunk_size: int, blob_index: Mapping[str, int]) -> bytearray:
        """The region's bytes; ``blob_index``: the position of each blob in the blob table."""
        out = bytearray(self.size)
        done: set[int] = set()
        for path, node in traverse(self._root):
            if id(node) not in done:
                done.add(id(node))
                self._render_node(
                    out, node, path, meta_addr=meta_addr, chunk_size=chunk_size,
                    blob_index=blob_index,
                )  # fmt: skip
        return out

    def _render_node(
        self, out: bytearray, node: Node, path: bytes, *, meta_addr: int, chunk_size: int,
        blob_index: Mapping[str, int],
    ) -> None:  # fmt: skip
        place = self._places[id(node)]
        xattrs = _pack_xattrs(node)
        icount = 1 + (len(xattrs) - EROFS_XATTR_IBODY_SIZE) // 4 if xattrs else 0
        data, i_u, layout = b"", 0, EROFS_INODE_FLAT_PLAIN
        if node.is_dir or node.is_symlink:
            data = self._pack_dir(node, place) if node.is_dir else node.target
            i_u = (meta_addr + place.data) // self._block
            if place.inline:
                layout = EROFS_INODE_FLAT_INLINE
        elif node.is_reg:
            layout = EROFS_INODE_CHUNK_BASED
            # Never upstream's wider format for contiguous chunks: the plain one is always right.
            i_u = EROFS_CHUNK_FORMAT_INDEXES | (chunk_size // self._block).bit_length() - 1
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            major, minor = os.major(node.rdev), os.minor(node.rdev)
            i_u = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
        size = len(data) if node.is_dir else node.size
        head = InodeExtended(
            1 | layout << 1, icount, node.mode, 0, size, i_u, place.ino, node.uid, node.gid,
            node.mtime, node.mtime_nsec, place.nlink, bytes(16),
        ).pack() + xattrs  # fmt: skip
        out[place.off : place.off + len(head)] = head
        at = place.off + len(head)
        if node.is_reg:
            at = round_up(at, CHUNK_INDEX_SIZE)
            for chunk in node.chunks:
                index = blob_index.get(chunk.blob)
                if index is None:
                    raise BuildError(f"{path!r}: blob {chunk.blob} is not in the blob table")
                CHUNK_INDEX.pack_into(
                    out, at, chunk.index & 0xFFFF, index + 1, chunk.index >> 16,
                    chunk.flat_off // self._block,
                )  # fmt: skip
                at += CHUNK_INDEX_SIZE
        elif place.inline:
            full = len(data) - len(data) % self._block
            out[place.data : place.data + full] = data[:full]
            out[at : at + len(data) - full] = data[full:]
        else:
            out[place.data : place.data + len(data)] = data

    def _pack_dir(self, node: Node, place: _Place) -> bytes:
        entries = [(b".", node), (b"..", place.parent), *node.children.items()]
        out = bytearray()
        for block in _dir_blocks(sorted(entries, key=lambda e: e[0]), self._block):
            out += bytes(round_up(len(out), self._block) - len(out))
            name_off = EROFS_DIRENT_SIZE * len(block)
            heads = bytearray()
            for name, child in block:
                kind = _FILE_TYPES[stat.S_IFMT(child.mode)]
                heads += DIRENT.pack(self.nid(child), name_off, kind, 0)
                name_off += len(name)
            out += heads + b"".join(name for name, _ in block)
        return bytes(out)


def _dir_blocks(entries: list[tuple[bytes, Node]], block: int) -> list[list[tuple[bytes, Node]]]:
    blocks: list[list[tuple[bytes, Node]]] = [[]]
    used = 0
    for entry in entries:
        need = EROFS_DIRENT_SIZE + len(entry[0])
        if used + need > block:
            blocks.append([])
            used = 0
        blocks[-1].append(entry)
        used += need
    return blocks


def _dir_size(node: Node, block: int) -> int:
    entries = [(b".", node), (b"..", node), *sorted_children(node)]
    blocks = _dir_blocks(sorted(entries, key=lambda e: e[0]), block)
    last = sum(EROFS_DIRENT_SIZE + len(name) for name, _ in blocks[-1])
    return (len(blocks) - 1) * block + last


def _pack_xattrs(node: Node) -> bytes:
    """Sorted by name: upstream's order is random, and the same input must give the same bytes."""
    if not node.xattrs:
        return b""
    out = bytearray(EROFS_XATTR_IBODY_SIZE)
    for key, value in sorted(node.xattrs.items()):
        found = xattr_index(key)
        assert found is not None
        index, rest = found
        out += XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
        out += bytes(-len(out) % 4)
    return bytes(out)


def _xattr_size(node: Node) -> int:
    return len(_pack_xattrs(node))
