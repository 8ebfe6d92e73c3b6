"""Which cached blob has a chunk, by digest: ``cache/chunks.index``, kept over restarts.

A hint and no more: what it names is read and verified before it is used.  So
nothing is synced, a damaged file is deleted and begun anew, and every failure
is a chunk that is fetched.  A query waits for nobody longer than ``PATIENCE_S``.
SQLite is loaded, and the file opened, by the first question: an idle daemon has none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nydus_fscache.errors import CacheDirError
from nydus_fscache.files import remove, status_of_ours
from rafs_v6.values import dataclass

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("chunkindex")

NAME = "chunks.index"
PATIENCE_S = 0.05
WRITE_PATIENCE_S = 5.0
LIMIT = 64 << 20  # bytes in use: about a million chunks
BATCH = 4000  # chunks that are written while queries wait
COPIES = 4  # of one chunk, that are named

_SIDE_FILES = ("", "-journal")
_SCHEMA = 1
_STEPS = 1000  # of sqlite's machine, between two looks at the clock

Key = tuple[int, bytes]  # digest algorithm, digest
Entry = tuple[Key, int, int, int]  # with its number, flat offset, size


@dataclass(frozen=True, slots=True)
class Place:
    """A chunk in the cache files of ``name``, when they are those of ``identity``."""

    name: str
    identity: str
    chunk: int
    uoff: int
    usize: int


def _stored(key: Key) -> bytes:
    return bytes((key[0],)) + key[1]


class ChunkIndex:
    """Thread-safe; never raises."""

    def __init__(self, directory: Path, limit: int = LIMIT) -> None:
        self._path = directory / NAME
        self._limit = limit
        self._lock = threading.Lock()
        self._deadline = 0.0
        self._blobs: dict[int, tuple[str, str]] = {}  # number -> name, identity
        self._numbers: dict[str, int] = {}  # by name: there may be 10^5 of them
        self._db: sqlite3.Connection | None = None
        self._shrinking = False
        self._asked = False

    # -- the file --------------------------------------------------------------------------

    def _begin(self) -> None:
        """With the first question; a file that cannot be had then is tried again by ``add``, which
        also makes the first: before that there is nothing to open."""
        if not self._asked and os.path.lexists(self._path):
            with self._using(WRITE_PATIENCE_S, writing=True) as ours:
                if ours and not self._asked:
                    self._asked = True
                    self._open()

    def _open(self) -> sqlite3.Connection:
        """Raises what ``_using`` handles."""
        import sqlite3  # noqa: PLC0415 - 1 MiB

        if self._db is not None:
            return self._db
        for side in _SIDE_FILES:
            status_of_ours(self._path.with_name(NAME + side))
        db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            db.set_progress_handler(lambda: time.monotonic() > self._deadline, _STEPS)
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=TRUNCATE", "synchronous=OFF"):
                db.execute(f"PRAGMA {pragma}")
            (schema,) = db.execute("PRAGMA user_version").fetchone()
            if schema not in (0, _SCHEMA):
                raise sqlite3.DatabaseError(f"made by another version ({schema})")
            db.execute(
                "CREATE TABLE IF NOT EXISTS blobs"
                " (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, identity TEXT)"
            )
            db.execute(
                "CREATE TABLE IF NOT EXISTS chunks"
                " (digest BLOB, blob INTEGER, chunk INTEGER, uoff INTEGER, usize INTEGER,"
                " PRIMARY KEY (digest, blob)) WITHOUT ROWID"
            )
            db.execute(f"PRAGMA user_version = {_SCHEMA}")
            rows = db.execute("SELECT id, name, identity FROM blobs").fetchall()
            self._blobs = {int(i): (str(name), str(identity)) for i, name, identity in rows}
            self._numbers = {name: i for i, (name, _) in self._blobs.items()}
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    @contextlib.contextmanager
    def _using(self, patience: float, *, writing: bool) -> Iterator[bool]:
        """Does the body have the file?  What goes wrong in it is only logged."""
        import sqlite3  # noqa: PLC0415 - 1 MiB

        until = time.monotonic() + patience
        if not self._lock.acquire(timeout=patience):
            yield False
            return
        try:
            self._deadline = until
            yield True
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as e:
            if isinstance(e, sqlite3.OperationalError) and not writing:  # no time, or the disk's
                log.info("%s: %s", self._path, e)
            else:
                log.warning("%s is begun anew: %s", self._path, e)
                self._close()
                self._remove()
        except (OSError, CacheDirError) as e:
            log.warning("%s is not used: %s", self._path, e)
        finally:
            self._lock.release()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            for side in _SIDE_FILES:
                remove(self._path.with_name(NAME + side))

    def _close(self) -> None:
        db, self._db = self._db, None
        self._blobs, self._numbers = {}, {}
        if db is not None:
            import sqlite3  # noqa: PLC0415 - 1 MiB

            with contextlib.suppress(sqlite3.Error):
                db.close()

    def close(self) -> None:
        with self._lock:
            self._close()

    # -- reading ---------------------------------------------------------------------------

    def knows(self, name: str, identity: str) -> bool:
        self._begin()
        return self._number(name, identity) is not None

    def _number(self, name: str, identity: str) -> int | None:
        number = self._numbers.get(name)
        is_it = number is not None and self._blobs.get(number) == (name, identity)
        return number if is_it else None

    def find(self, keys: Sequence[Key]) -> dict[Key, list[Place]]:
        """Where each chunk is said to be, in up to ``COPIES`` blobs."""
        found: dict[Key, list[Place]] = {}
        self._begin()
        if self._shrinking or not self._blobs:  # hints only, so without the lock
            return found
        with self._using(PATIENCE_S, writing=False) as ours:
            if ours and self._db is not None:
                for key in keys:
                    rows = self._db.execute(
                        "SELECT blob, chunk, uoff, usize FROM chunks WHERE digest = ? LIMIT ?",
                        (_stored(key), COPIES),
                    )
                    places = [
                        Place(*self._blobs[blob], int(chunk), int(uoff), int(usize))
                        for blob, chunk, uoff, usize in rows
                        if blob in self._blobs
                    ]
                    if places:
                        found[key] = places
        return found

    # -- writing ---------------------------------------------------------------------------

    def add(self, name: str, identity: str, chunks: Iterable[Entry]) -> None:
        """Chunks that are recorded."""
        entries = sorted(chunks)  # as they lie in the file, so that each page is written once
        for start in range(0, len(entries), BATCH):
            with self._using(WRITE_PATIENCE_S, writing=True) as ours:
                if ours:
                    self._add(name, identity, entries[start : start + BATCH])

    def _add(self, name: str, identity: str, chunks: Sequence[Entry]) -> None:
        db = self._open()
        with db:
            db.execute("BEGIN")
            number = self._number(name, identity)
            if number is None:
                self._drop(db, name)
                number = db.execute(
                    "INSERT INTO blobs (name, identity) VALUES (?, ?)", (name, identity)
                ).lastrowid
                assert number is not None
                self._blobs[number] = (name, identity)
                self._numbers[name] = number
            db.executemany(
                "INSERT OR REPLACE INTO chunks (blob, digest, chunk, uoff, usize)"
                " VALUES (?, ?, ?, ?, ?)",
                [(number, _stored(key), *place) for key, *place in chunks],
            )
        if self._bytes_in_use(db) > self._limit:
            self._shrink(db)

    def _bytes_in_use(self, db: sqlite3.Connection) -> int:
        sizes = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(db.execute(f"PRAGMA {s}").fetchone()[0]) for s in sizes)
        return (pages - free) * size

    def _shrink(self, db: sqlite3.Connection) -> None:
        """First what deleted blobs left goes, then the blobs that were noted first."""
        self._shrinking = True
        try:
            while True:
                db.execute("DELETE FROM chunks WHERE blob NOT IN (SELECT id FROM blobs)")
                if self._bytes_in_use(db) <= self._limit * 3 // 4 or not self._blobs:
                    return
                for number in sorted(self._blobs)[: -(-len(self._blobs) // 4)]:
                    self._drop(db, self._blobs[number][0])
        finally:
            self._shrinking = False

    def forget(self, name: str) -> None:
        """A blob's files are gone.  Its chunks go when there is need of their room."""
        self._begin()
        with self._using(PATIENCE_S, writing=True) as ours:
            if ours and self._db is not None:
                self._drop(self._db, name)

    def _drop(self, db: sqlite3.Connection, name: str) -> None:
        number = self._numbers.pop(name, None)
        if number is not None:
            db.execute("DELETE FROM blobs WHERE id = ?", (number,))
            del self._blobs[number]
