"""An image out of a tar while it arrives: nothing but the blob is written, nothing is read twice.

The chunks are in the order of the tar.  Data of a file that a later member replaces are in the
blob, too, as are those of files that whiteouts of the layer's own hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Protocol

from rafs_v6.errors import shown
from rafs_v6.writer.base_image import load_base
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import BlobFile
from rafs_v6.writer.chunk_writer import ChunkWriter
from rafs_v6.writer.create import (
    OWN_BLOB,
    Created,
    blob_target,
    defaults_of,
    finish,
    prepared,
)
from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.options import CreateOptions
from rafs_v6.writer.overlay import apply_layer
from rafs_v6.writer.prefetch import prefetch_rows
from rafs_v6.writer.sources import tar_members
from rafs_v6.writer.sources.tar import TarTree, is_estargz_own
from rafs_v6.writer.sources.tar_members import Member, members
from rafs_v6.writer.tree import Tree

_SKIP = 1 << 16


class Readable(Protocol):
    """A stream; ``read`` gives fewer bytes than asked for when no more are there yet, and none
    only at the end."""

    def read(self, length: int, /) -> bytes: ...


class Filler(Protocol):
    """Takes the data of files, in their order."""

    def add(self, row: int, member: Member, read: Callable[[memoryview], None]) -> None:
        """Those of ``member``, which are read by ``read``."""

    def finish(self) -> None:
        """All were added, and the tar has ended."""

    def close(self) -> None:
        """Whatever became of it."""


def create_from_stream(
    tar: Readable, stored_size: int | Callable[[], int] | None, options: CreateOptions, *,
    out: IO[bytes] | None = None, estargz: bool = False,
    fill: Callable[[Tree, BlobChunks], Filler] | None = None,
) -> Created:  # fmt: skip
    """Build an image of a plain tar, whose end is read too.

    ``stored_size``: bytes of the layer as it is stored, compressed or not, which bound what its
    headers may take, or a function that gives those that were read so far; None for those of the
    tar itself.  ``fill``: other than to store the data.  ``out``: where the blob goes instead of a
    file that ``options`` name; it is flushed, and left open.  When this raises, what ``out`` got
    is not a blob.

    Raises ``SourceError`` for a bad tar, and what ``tar`` and ``out`` raise.
    """
    cursor = _StreamCursor(tar)
    found = TarTree(0, options.whiteouts)
    stored = stored_size if callable(stored_size) else lambda: stored_size or cursor.pos
    heap = found.tree
    heap.chunk_size = options.chunks.chunk_size
    base = load_base(options.parent, options.chunk_dict, defaults_of(options), options.whiteouts)
    chunks = BlobChunks(OWN_BLOB, heap.locations, base.chunks)
    blob = BlobFile(blob_target(options) if out is None else out)
    try:
        filler = _Stored(heap, options, chunks, blob) if fill is None else fill(heap, chunks)
        try:
            for member in members(cursor):
                found.stored_size = stored()
                row = found.add(member, 0)
                if estargz and is_estargz_own(member.name):
                    continue
                if member.type == tar_members.REGULAR and member.size:
                    filler.add(row, member, _Body(cursor, member).read_into)
            filler.finish()
        finally:
            filler.close()
        made = found.made(options.warn, estargz=estargz)
        if estargz and made.unread():
            raise SourceError("a hard link to what belongs to the format of eStargz")
        tree = prepared(made, options)
        if base.tree is not None:
            tree = apply_layer(base.tree, tree, options.whiteouts)
        first = prefetch_rows(tree, options.prefetch)
        return finish(tree, base, chunks, options, blob, first)
    finally:
        blob.discard()


class _Stored:
    """As chunks of the blob."""

    def __init__(
        self, tree: Tree, options: CreateOptions, chunks: BlobChunks, blob: BlobFile
    ) -> None:
        self._step = tree.chunk_size
        self._writer = ChunkWriter(tree, options.chunks, chunks, blob.write)

    def add(self, row: int, member: Member, read: Callable[[memoryview], None]) -> None:
        for at in range(0, member.size, self._step):
            self._writer.reader.add_data(row, at, min(self._step, member.size - at), read)

    def finish(self) -> None:
        self._writer.finish()

    def close(self) -> None:
        self._writer.close()


class _StreamCursor:
    """See ``tar_members.Cursor``."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.pos = 0

    def read(self, length: int) -> bytes:
        data = self._stream.read(length)
        while len(data) < length:
            more = self._stream.read(length - len(data))
            if not more:
                break
            data += more
        self.pos += len(data)
        return data

    def read_into(self, view: memoryview) -> int:
        """Fill ``view``; how many bytes there were."""
        done = 0
        while done < len(view):
            data = self._stream.read(len(view) - done)
            if not data:
                break
            view[done : done + len(data)] = data
            done += len(data)
        self.pos += done
        return done

    def skip_to(self, pos: int) -> None:
        while self.pos < pos and self.read(min(_SKIP, pos - self.pos)):
            pass


class _Body:
    """The bytes of a member's file, in order: what the tar has, and zeros between sparse pieces."""

    def __init__(self, cursor: _StreamCursor, member: Member) -> None:
        self._cursor, self._member = cursor, member
        self._pieces = self._all_pieces(member)
        self._piece = next(self._pieces)

    @staticmethod
    def _all_pieces(member: Member) -> Iterator[tuple[bool, int]]:
        """(is it in the tar, bytes)"""
        if member.sparse is None:
            yield True, member.size
            return
        end = 0
        for at, length in zip(member.sparse.offsets, member.sparse.lengths, strict=True):
            if at > end:
                yield False, at - end
            if length:
                yield True, length
            end = at + length
        yield False, member.size - end

    def read_into(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            stored, left = self._piece
            size = min(left, len(view) - done)
            part = view[done : done + size]
            if not stored:
                part[:] = bytes(size)
            elif self._cursor.read_into(part) != size:
                raise SourceError(f"{shown(self._member.name)}: the tar ends inside its data")
            done += size
            self._piece = (stored, left - size) if left > size else next(self._pieces, (False, 0))
