"""Ids of blobs, which an image states and which name cache files."""

from __future__ import annotations

import re

from nydus_fscache.errors import BadImage

_BLOB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def checked_blob_id(blob_id: str) -> str:
    """A blob id that is safe as a file name; it comes from the image, which may be hostile."""
    if not _BLOB_ID.fullmatch(blob_id):
        raise BadImage(
            f"blob id {blob_id!r} cannot name a cache file",
            hint="ids are 1 to 64 letters, digits, '.', '_' or '-'; the image is not to be trusted",
        )
    return blob_id
