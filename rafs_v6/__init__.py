"""RAFS v6 images: open, validate, walk and read them.

>>> import rafs_v6
>>> with rafs_v6.open("image.boot", blobs="blobs/") as image:
...     names = image.listdir("/etc")
...     text = image.read(image.resolve("/etc/os-release"))

Knows bytes, not daemons, networks or kernels.  Whatever the input, the only
errors about it are ``ImageError`` (and ``UnsupportedImage``), and time and memory
are bounded by its size.

``__all__`` is the promise: these names, and what their docstrings say, stay.  Other modules
of the package may change from one version to the next.  docs/format.md explains the format.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rafs_v6.errors import BlobsError, ImageError, NotAFileError, RafsError, UnsupportedImage

if TYPE_CHECKING:
    from rafs_v6.format.blob_table import BlobInfo
    from rafs_v6.format.erofs import BlobFeatures, Compressor, Digester
    from rafs_v6.format.toc import ReadAt
    from rafs_v6.reader.blobs import Blobs, BlobsGiven
    from rafs_v6.reader.bootstrap import Bootstrap
    from rafs_v6.reader.chunkmap import ChunkMap, Unit
    from rafs_v6.reader.image import BlobRange, Image
    from rafs_v6.reader.inode import ChunkRef, Dirent, Inode
    from rafs_v6.reader.locate import Given

__version__ = "0.1.0"

__all__ = [
    "BlobFeatures",
    "BlobInfo",
    "BlobRange",
    "Blobs",
    "BlobsError",
    "Bootstrap",
    "ChunkMap",
    "ChunkRef",
    "Compressor",
    "Digester",
    "Dirent",
    "Image",
    "ImageError",
    "Inode",
    "NotAFileError",
    "RafsError",
    "ReadAt",
    "Unit",
    "UnsupportedImage",
    "__version__",
    "open",
]


# Names that are imported when they are first used: a program that builds an image needs no reader.
_LATE = {
    "BlobFeatures": "rafs_v6.format.erofs",
    "BlobInfo": "rafs_v6.format.blob_table",
    "BlobRange": "rafs_v6.reader.image",
    "Blobs": "rafs_v6.reader.blobs",
    "Bootstrap": "rafs_v6.reader.bootstrap",
    "ChunkMap": "rafs_v6.reader.chunkmap",
    "ChunkRef": "rafs_v6.reader.inode",
    "Compressor": "rafs_v6.format.erofs",
    "Digester": "rafs_v6.format.erofs",
    "Dirent": "rafs_v6.reader.inode",
    "Image": "rafs_v6.reader.image",
    "Inode": "rafs_v6.reader.inode",
    "ReadAt": "rafs_v6.format.toc",
    "Unit": "rafs_v6.reader.chunkmap",
}


def __getattr__(name: str) -> object:
    module = _LATE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def open(image: Given, *, blobs: BlobsGiven | None = None) -> Image:
    """Open an image and validate all of its tree.

    ``image``: a bootstrap, or a blob with a bootstrap inside, as a path, as bytes, or as a
    seekable binary stream.  A file must not change while the image is open; a stream is read
    from as long as the image is, and stays the caller's.
    ``blobs``: a directory with blobs named by id, a ``Blobs``, or a function ``read_at(blob_id,
    offset, length)`` that gives exactly so many bytes from any thread.  A blob that ``image`` is
    itself is known.  Without ``blobs`` the tree can be walked; reading a file is a ``BlobsError``.

    Raises ``ImageError`` with the name of the file, and ``OSError`` when it cannot be read.
    """
    from rafs_v6.reader.blobs import blobs_of  # noqa: PLC0415
    from rafs_v6.reader.image import Image  # noqa: PLC0415
    from rafs_v6.reader.locate import Source, adopt_own_blob, locate_bootstrap  # noqa: PLC0415
    from rafs_v6.validate import validate  # noqa: PLC0415

    source = Source.of(image)
    try:
        bootstrap, _ = locate_bootstrap(source)
        validate(bootstrap)
        given = adopt_own_blob(source, bootstrap, blobs_of(blobs))
    except ImageError as error:
        raise error.at(source.shown) from error
    return Image(bootstrap, given, name=source.shown)
