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

from rafs_v6.errors import BlobsError, ImageError, NotAFileError, RafsError, UnsupportedImage
from rafs_v6.format.erofs import BlobFeatures, Compressor, Digester
from rafs_v6.format.tables import BlobInfo
from rafs_v6.format.toc import ReadAt
from rafs_v6.reader.blobs import Blobs, BlobsGiven, blobs_of
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.chunkmap import ChunkMap, Unit
from rafs_v6.reader.image import BlobRange, Image
from rafs_v6.reader.inode import ChunkRef, Dirent, Inode
from rafs_v6.reader.locate import Given, Source, adopt_own_blob, locate_bootstrap
from rafs_v6.validate import validate as _validate

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
    source = Source.of(image)
    try:
        bootstrap, _ = locate_bootstrap(source)
        _validate(bootstrap)
        given = adopt_own_blob(source, bootstrap, blobs_of(blobs))
    except ImageError as error:
        raise error.at(source.shown) from error
    return Image(bootstrap, given, name=source.shown)
