"""What ``nydusify build`` made goes into a bucket: blobs that it lacks, then the bootstrap.

The bootstrap comes last, so nobody finds one whose blobs are not there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nydus_fscache.convert.bucket import Bucket
from nydus_fscache.convert.readers import BackendBlobs
from nydus_fscache.errors import UsageError

log = logging.getLogger("nydusify")

KINDS = ("oss", "s3")
_PREFIXES = ("meta_prefix", "blob_prefix", "object_prefix")


def push_build(
    kind: str, config: Mapping[str, Any], boot: Path, blob_ids: Iterable[str], directory: Path
) -> str:
    """Where the bootstrap is now.  Blobs that the bucket lacks are ``directory/ID``."""
    options = {k: v for k, v in config.items() if k not in _PREFIXES}
    common = config.get("object_prefix", "")
    blobs = {**options, "object_prefix": config.get("blob_prefix", common)}
    metas = {**options, "object_prefix": config.get("meta_prefix", common)}
    found = BackendBlobs(kind, blobs)
    bucket = Bucket(kind, blobs)
    try:
        for blob_id in blob_ids:
            if found.has_blob(f"sha256:{blob_id}") is None:
                _put(bucket, blob_id, directory / blob_id)
    finally:
        bucket.close()
        found.close()
    bucket = Bucket(kind, metas)
    try:
        _put(bucket, boot.name, boot)
        return bucket.url(boot.name)
    finally:
        bucket.close()


def _put(bucket: Bucket, name: str, file: Path) -> None:
    if not file.is_file():
        raise UsageError(
            f"blob {name} is neither in the backend nor in {file.parent}",
            hint="put the blobs of the parent and of the dictionary there, named by their ids",
        )
    log.info("push %s", name)
    bucket.put(name, lambda: file.open("rb"), file.stat().st_size)
