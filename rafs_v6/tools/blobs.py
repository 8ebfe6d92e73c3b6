"""How the tools open an image: messages with the file's name, dictionaries of chunks included."""

from __future__ import annotations

from pathlib import Path

import rafs_v6
from rafs_v6.errors import ImageError
from rafs_v6.format.erofs import BlobFeatures
from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.image import Image
from rafs_v6.reader.locate import locate_bootstrap


def load_bootstrap(path: Path) -> Bootstrap:
    """A bootstrap, or the one inside a blob with inline metadata; its tree is not yet checked."""
    try:
        return locate_bootstrap(path)[0]
    except ImageError as error:
        raise error.at(path) from error


def is_dictionary(bootstrap: Bootstrap) -> bool:
    """Was it made to be a dictionary of chunks?  The original gives such a tree with odd names:
    only its tables are used, and the kernel cannot have it."""
    return any(b.features & BlobFeatures.IS_CHUNKDICT_GENERATED for b in bootstrap.blobs)


def open_image(path: Path, blobs: Blobs) -> tuple[Image, Blobs]:
    """A validated image, and its blobs under the names that it uses."""
    image = rafs_v6.open(path, blobs=blobs)
    return image, image.source
