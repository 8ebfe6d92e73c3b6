"""What is kept of images besides their data, in bounds: bootstraps, blobs' metadata, traces.

All of it can be had again (a trace by another start), so the least recently used go.
What was used a moment ago stays: it may be of a mount that has only begun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from pathlib import Path

from nydus_fscache.files import remove

log = logging.getLogger("images")

KEPT = 256  # images that nothing uses
GRACE_S = 600.0
_TRACE = ".trace"


def collect(
    directory: Path, used: Container[str], *, keep: int = KEPT, dry_run: bool = False
) -> list[str]:
    """Delete what is neither among the ``keep`` last used images nor in ``used`` (digests and
    image keys); traces are small and worth a start, so ``KEPT`` of them stay in any case.

    Returns the names that go.  What is left of a write that was killed goes too.
    """
    entries = []
    for path in directory.iterdir():
        try:
            entries.append((path.lstat().st_mtime, path))
        except FileNotFoundError:
            continue
    entries.sort(reverse=True)
    recent = time.time() - GRACE_S
    seen: dict[bool, set[str]] = {True: set(), False: set()}  # images with a trace, with the rest
    gone = []
    for last_used, path in entries:
        is_trace = path.suffix == _TRACE
        owner = path.name.partition(".")[0]  # empty: a temporary file
        images = seen[is_trace]
        images.add(owner)
        if last_used > recent or owner in used:
            continue
        if not owner or len(images) > (max(keep, KEPT) if is_trace else keep):
            gone.append(path)
    for path in gone if not dry_run else ():
        remove(path)
    if gone and not dry_run:
        log.info("%d files of images that nothing uses are deleted", len(gone))
    return [path.name for path in gone]
