"""Where the bytes of blobs come from, and which of them a bootstrap stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rafs_v6.errors import ImageError, RafsError
from rafs_v6.format.erofs import BlobFeatures
from rafs_v6.format.tables import is_inlined_id
from rafs_v6.format.toc import ReadAt
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.image import Image, directory_reader
from rafs_v6.reader.locate import locate_bootstrap


class BlobsError(RafsError):
    """The bytes of a blob could not be had from a backend; the message says why."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """``read_at(blob_id, offset, length)``: exactly so many bytes, from any thread, or an error
    of the backend's; ``size(blob_id)``: bytes of the stored object."""

    read_at: ReadAt
    size: Callable[[str], int]


def directory_blobs(directory: Path) -> Blobs:
    """Blobs that lie in a directory under their ids."""
    return Blobs(directory_reader(directory), lambda i: (directory / i).stat().st_size)


def file_blobs(path: Path) -> Blobs:
    """One file that is the only blob, whatever the id that it is asked for by."""
    read = directory_reader(path.parent)
    return Blobs(lambda _, off, n: read(path.name, off, n), lambda _: path.stat().st_size)


def load_bootstrap(path: Path) -> Bootstrap:
    """A bootstrap, or the one inside a blob with inline metadata; its tree is not yet checked."""
    try:
        return locate_bootstrap(path)[0]
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from error


def is_dictionary(bootstrap: Bootstrap) -> bool:
    """Was it made to be a dictionary of chunks?  The original gives such a tree with odd names:
    only its tables are used, and the kernel cannot have it."""
    return any(b.features & BlobFeatures.IS_CHUNKDICT_GENERATED for b in bootstrap.blobs)


def adopt_own_blob(path: Path, bootstrap: Bootstrap, blobs: Blobs) -> Blobs:
    """A bootstrap inside a blob cannot know the blob's name, the file ``path`` (format.md 2.9).

    Puts that name into ``bootstrap``; ``blobs`` with the file among them.
    """
    if not any(b.features & BlobFeatures.INLINED_FS_META for b in bootstrap.blobs):
        return blobs
    infos = []
    for info in bootstrap.blobs:
        if is_inlined_id(info.blob_id):
            infos.append(replace(info, blob_id=path.name, meta_blob_id=path.name))
        elif info.is_separate and info.features & BlobFeatures.INLINED_FS_META:
            infos.append(replace(info, meta_blob_id=path.name))
        else:
            infos.append(info)
    bootstrap.blobs = tuple(infos)
    own = directory_blobs(path.parent)

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        return (own if blob_id == path.name else blobs).read_at(blob_id, offset, length)

    return Blobs(read_at, lambda i: (own if i == path.name else blobs).size(i))


def open_image(path: Path, blobs: Blobs) -> tuple[Image, Blobs]:
    """A validated image, and its blobs under the names that it uses."""
    bootstrap = load_bootstrap(path)
    bootstrap.validate()
    blobs = adopt_own_blob(path, bootstrap, blobs)
    return Image(bootstrap, blobs.read_at, blobs.size), blobs
