"""A tree becomes the metadata region of a bootstrap: places, then bytes (sheet 1.6 - 1.15).

Places follow upstream's first-fit rule, so that inline data share blocks with
inodes.  Offsets here count from the region's start, which holds one empty block.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import deque
from collections.abc import Mapping

from rafs_v6.build.errors import BuildError
from rafs_v6.build.tree import Node, sorted_children, xattr_index
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


class Layout:
    """``Layout(root)`` finds the places; ``render`` writes them for a given ``meta_addr``.

    ``block``: 4096 bytes, or 512 for tarfs.  The region's empty start is 4096 for both.
    What is known of a node lies in arrays, by its number: ``node.ino``, counted
    in the order of the tree (sheet 1.15), with a gap for every further hard link.
    """

    def __init__(self, root: Node, block: int = EROFS_BLOCK) -> None:
        self._block = block
        self._nodes: list[Node | None] = [None]
        self._off, self._data = array("Q", [0]), array("Q", [0])
        self._nlink = array("I", [0])
        self._inline = bytearray(1)
        self._parents: dict[int, int] = {1: 1}  # of directories
        self._end = EROFS_BLOCK
        self._free: list[deque[int]] = [deque() for _ in range(block // EROFS_SLOTSIZE)]
        self.has_xattr = False
        self._place_tree(root)
        self.inos = len(self._nodes) - 1
        self.size = round_up(self._end, EROFS_BLOCK)

    def nid(self, node: Node) -> int:
        return self._off[node.ino] // EROFS_SLOTSIZE

    # -- places --------------------------------------------------------------------------------

    def _place_tree(self, root: Node) -> None:
        self._place(root)
        pending = [root]
        while pending:
            node = pending.pop()
            directories = []
            for _, child in sorted_children(node):
                if self._is_placed(child):
                    self._nlink[child.ino] += 1
                    self._append(None)
                    continue
                self._place(child)
                if child.is_dir:
                    self._parents[child.ino] = node.ino
                    directories.append(child)
            pending += reversed(directories)

    def _is_placed(self, node: Node) -> bool:
        # The number may be one from another layout of this node.
        return node.ino < len(self._nodes) and self._nodes[node.ino] is node

    def _append(self, node: Node | None) -> int:
        self._nodes.append(node)
        self._off.append(0)
        self._data.append(0)
        self._nlink.append(1)
        self._inline.append(0)
        return len(self._nodes) - 1

    def _place(self, node: Node) -> None:
        node.ino = ino = self._append(node)
        self.has_xattr |= bool(node.xattrs)
        if node.is_dir:
            self._nlink[ino] = 2 + sum(c.is_dir for c in node.children.values())
            self._place_flat(node, _dir_size(node, self._block))
        elif node.is_symlink:
            self._place_flat(node, len(node.target))
        elif node.is_reg:
            body = round_up(InodeExtended.SIZE + _xattr_size(node), CHUNK_INDEX_SIZE)
            self._off[ino] = self._take_or_append(body + CHUNK_INDEX_SIZE * len(node.chunks))
        else:
            self._off[ino] = self._end
            self._end += InodeExtended.SIZE + _xattr_size(node)
        self._end = round_up(self._end, EROFS_SLOTSIZE)

    def _place_flat(self, node: Node, size: int) -> None:
        ino, block = node.ino, self._block
        body = InodeExtended.SIZE + _xattr_size(node)
        tail = size % block
        if tail and body + tail <= block:
            self._inline[ino] = 1
            taken = self._take(body + tail)
            if taken is None:
                if block - self._end % block < body + tail:
                    self._next_block()
                taken = self._end
                self._end += body + tail
            self._off[ino] = taken
            if size != tail:
                self._next_block()
            self._data[ino] = self._end
            self._end += size - tail
        else:
            self._off[ino] = self._take_or_append(body)
            self._next_block()
            self._data[ino] = self._end
            self._end = round_up(self._end + size, block)

    def _take_or_append(self, size: int) -> int:
        taken = self._take(size)
        if taken is None:
            taken = self._end
            self._end += size
        return taken

    def _next_block(self) -> None:
        self._push(round_up(self._end, EROFS_SLOTSIZE))
        self._end = round_up(self._end, self._block)

    def _push(self, off: int) -> None:
        used = off % self._block
        if used:
            self._free[(self._block - used) // EROFS_SLOTSIZE].append(off - used)

    def _take(self, size: int) -> int | None:
        for slots in range(-(-size // EROFS_SLOTSIZE), self._block // EROFS_SLOTSIZE):
            if self._free[slots]:
                off = self._free[slots].popleft() + self._block - EROFS_SLOTSIZE * slots
                self._push(off + round_up(size, EROFS_SLOTSIZE))
                return off
        return None

    # -- bytes ---------------------------------------------------------------------------------

    def render(
        self, out: memoryview, meta_addr: int, chunk_size: int, blob_index: Mapping[str, int]
    ) -> None:
        """Write the region into ``out``, ``size`` zeros.

        ``blob_index``: the position of each blob in the blob table.
        """
        for node in self._nodes:
            if node is not None:
                self._render_node(out, node, meta_addr, chunk_size, blob_index)

    def _render_node(
        self, out: memoryview, node: Node, meta_addr: int, chunk_size: int,
        blob_index: Mapping[str, int],
    ) -> None:  # fmt: skip
        ino = node.ino
        off, data_off, inline = self._off[ino], self._data[ino], self._inline[ino]
        xattrs = _pack_xattrs(node)
        icount = 1 + (len(xattrs) - EROFS_XATTR_IBODY_SIZE) // 4 if xattrs else 0
        data, i_u, layout = b"", 0, EROFS_INODE_FLAT_PLAIN
        if node.is_dir or node.is_symlink:
            data = self._pack_dir(node) if node.is_dir else node.target
            i_u = (meta_addr + data_off) // self._block
            if inline:
                layout = EROFS_INODE_FLAT_INLINE
        elif node.is_reg:
            layout = EROFS_INODE_CHUNK_BASED
            # Never upstream's wider format for contiguous chunks: the plain one is always right.
            i_u = EROFS_CHUNK_FORMAT_INDEXES | (chunk_size // self._block).bit_length() - 1
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            major, minor = os.major(node.rdev), os.minor(node.rdev)
            i_u = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
        InodeExtended.LAYOUT.pack_into(
            out, off, 1 | layout << 1, icount, node.mode, 0,
            len(data) if node.is_dir else node.size, i_u, ino, node.uid, node.gid,
            node.mtime, node.mtime_nsec, self._nlink[ino], bytes(16),
        )  # fmt: skip
        at = off + InodeExtended.SIZE
        out[at : at + len(xattrs)] = xattrs
        at += len(xattrs)
        if node.is_reg:
            at = round_up(at, CHUNK_INDEX_SIZE)
            for chunk in node.chunks:
                index = blob_index.get(chunk.blob)
                if index is None:
                    raise BuildError(f"a file has data in {chunk.blob}, not in the blob table")
                CHUNK_INDEX.pack_into(
                    out, at, chunk.index & 0xFFFF, index + 1, chunk.index >> 16,
                    chunk.flat_off // self._block,
                )  # fmt: skip
                at += CHUNK_INDEX_SIZE
        elif inline:
            full = len(data) - len(data) % self._block
            out[data_off : data_off + full] = data[:full]
            out[at : at + len(data) - full] = data[full:]
        else:
            out[data_off : data_off + len(data)] = data

    def _pack_dir(self, node: Node) -> bytes:
        numbers = {b".": node.ino, b"..": self._parents[node.ino]}
        out = bytearray()
        for block in _dir_blocks(node, self._block):
            out += bytes(round_up(len(out), self._block) - len(out))
            name_off = EROFS_DIRENT_SIZE * len(block)
            heads = bytearray()
            for name, kind in block:
                child = node.children.get(name)
                ino = child.ino if child is not None else numbers[name]
                nid = self._off[ino] // EROFS_SLOTSIZE
                heads += DIRENT.pack(nid, name_off, _FILE_TYPES[kind], 0)
                name_off += len(name)
            out += heads + b"".join(name for name, _ in block)
        return bytes(out)


def _dir_blocks(node: Node, block: int) -> list[list[tuple[bytes, int]]]:
    """(name, file type) of all entries, cut into blocks."""
    entries = [(name, stat.S_IFMT(child.mode)) for name, child in node.children.items()]
    entries += [(b".", stat.S_IFDIR), (b"..", stat.S_IFDIR)]
    entries.sort()
    blocks: list[list[tuple[bytes, int]]] = [[]]
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
    blocks = _dir_blocks(node, block)
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
