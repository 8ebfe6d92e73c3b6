"""RAFS v6 images: open, validate, walk and read them.

>>> import rafs_v6
>>> image = rafs_v6.open("image.boot", blobs="blobs/")
>>> for path, inode in image.walk(): ...
>>> image.read("/etc/os-release")

Knows bytes, not daemons, networks or kernels.  Whatever the input, the only
errors about it are ``ImageError`` (and ``UnsupportedImage``), and time and memory
are bounded by its size.
"""

from rafs_v6.errors import ImageError, RafsError, UnsupportedImage
from rafs_v6.format.erofs import BlobFeatures, Compressor, Digester
from rafs_v6.format.tables import BlobInfo
from rafs_v6.format.toc import ReadAt, find_bootstrap
from rafs_v6.reader.bootstrap import Bootstrap, ChunkRef, Dirent, Inode
from rafs_v6.reader.chunkmap import ChunkMap, Unit
from rafs_v6.reader.image import Image, directory_reader
from rafs_v6.reader.image import open_image as open

__all__ = [
    "BlobFeatures",
    "BlobInfo",
    "Bootstrap",
    "ChunkMap",
    "ChunkRef",
    "Compressor",
    "Digester",
    "Dirent",
    "Image",
    "ImageError",
    "Inode",
    "RafsError",
    "ReadAt",
    "Unit",
    "UnsupportedImage",
    "directory_reader",
    "find_bootstrap",
    "open",
]
