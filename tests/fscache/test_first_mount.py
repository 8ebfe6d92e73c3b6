"""The first mount of a node loads what it needs and no more: each module is time before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys, time
import nydus_fscache.backend.registry
from nydus_fscache.cache.chunk_index import ChunkIndex
from nydus_fscache.config.url import Url
from nydus_fscache.http.dial import resolve
from nydus_fscache.http.wire import Deadline

index = ChunkIndex(__import__("pathlib").Path(sys.argv[1]))
assert not index.knows("a", "i") and not index.find([(1, bytes(32))])
assert resolve(Url("http", "localhost", 80, ""), Deadline(time.monotonic() + 10, 10))
print(*sys.modules)
"""
UNNEEDED = {"encodings.idna", "random", "requests", "sqlite3", "ssl", "unicodedata"}


def test_an_empty_cache_and_a_registry_by_name_load_neither_database_nor_tables(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path], capture_output=True, text=True, check=True
    )
    assert not UNNEEDED & set(done.stdout.split())
    assert not list(tmp_path.iterdir())
