"""A module that came names what is needed next: the files that it imports are asked for at once,
and those that they import when they come.

So is what the command line of a reader names: its script, and modules of `-m` and `-c`.

Only what a reader wanted, or what such a file names, is looked at; a guess by name is more often
right than one by neighbourhood, and both are bounded by what may be unread.  A reader of
everything is not followed: looks are earned by time, and end with the start that they are for.
Used by one thread.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import rafs_v6
from nydus_fscache.core.files import files_of, imports_of
from nydus_fscache.core.units import first_chunks
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.job import KIB
from nydus_fscache.fetch.plan import WHOLE_FILE
from nydus_fscache.fetch.wanted import by_blob, of_inodes
from nydus_fscache.image.names import Names
from rafs_v6.values import dataclass

MOST_CHUNKS = 1 << 18  # of a blob whose files are known: six bytes each are kept
LONGEST_NAME = 255
LARGEST = 256 * KIB  # bytes of a module that is looked at
AT_ONCE, PER_SECOND = 512, 64  # modules
MOST_LOOKED_AT, MOST_NAMED = 4096, 32_768  # in all: a start needs some hundred
MOST_COMMANDS, MOST_SAID, MOST_SOUGHT = 16, 256, 16  # command lines, names in them, and how often
IDLE_S = 20.0  # then what is known of directories is forgotten


@dataclass(frozen=True, slots=True)
class _Files:
    """By unit: the directory of the file that begins with it, and its kind; 0 for none."""

    directories: array[int]
    kinds: array[int]


class Chase:
    """Of one image."""

    def __init__(self, objects: Sequence[CacheObject]) -> None:
        self._objects = objects
        self.known: dict[CacheObject, _Files] = {}
        self._names = Names()
        self._named: set[int] = set()  # nids
        self._seen: set[tuple[CacheObject, int]] = set()
        self._commands: set[int] = set()  # by hash
        self._said: list[bytes] = []  # names of modules in them
        self._roots: list[int] = []  # where these were sought, and how often
        self._sought = 0
        self._looks = float(AT_ONCE)
        self._looked_at = time.monotonic()

    def know(self, bootstrap: rafs_v6.Bootstrap) -> None:
        """Of which file each unit is.  It costs memory, so it is made when somebody reads them."""
        known = by_blob(self._objects)
        for device, info in enumerate(bootstrap.blobs):
            obj = known.get(info.blob_id)
            if obj is None or info.is_tarfs or not 0 < obj.chunks.nchunks <= MOST_CHUNKS:
                continue
            directories, kinds = files_of(bootstrap.data, device, obj.chunks.nchunks)
            firsts = first_chunks(obj.chunks.blob, obj.chunks.nunits)
            files = self.known[obj] = _Files(_by_unit(directories, firsts), _by_unit(kinds, firsts))
            obj.know_kinds(files.kinds)

    def follow(
        self, bootstrap: rafs_v6.Bootstrap, modules: deque[tuple[CacheObject, int]]
    ) -> None:
        """``modules``: units that are here, each a file."""
        with self._loading(bootstrap) as wanted:
            while modules:
                obj, unit = modules.popleft()
                if (obj, unit) not in self._seen and self._may_look():
                    self._seen.add((obj, unit))
                    self._look(bootstrap, obj, unit, modules, wanted)

    def command(
        self,
        bootstrap: rafs_v6.Bootstrap,
        words: Sequence[bytes],
        cwd: bytes,
        modules: deque[tuple[CacheObject, int]],
    ) -> None:
        """Of a process that reads.  Paths are looked for now, modules where the first are read."""
        number = hash((*words, cwd))
        if number in self._commands or len(self._commands) >= MOST_COMMANDS:
            return
        self._commands.add(number)
        paths, names = said_by(words, cwd)
        self._said += names[: MOST_SAID - len(self._said)]
        self._roots = []
        with self._loading(bootstrap) as wanted:
            self._take(bootstrap, self._names.at(paths), modules, wanted)

    @contextlib.contextmanager
    def _loading(self, bootstrap: rafs_v6.Bootstrap) -> Iterator[dict[CacheObject, list[int]]]:
        """Names can be sought; units that are put into the value are loaded at the end."""
        self._names.with_bootstrap(bootstrap)
        wanted: dict[CacheObject, list[int]] = {}
        try:
            yield wanted
        finally:
            self._names.with_bootstrap(None)
        for obj, units in wanted.items():
            obj.load_named(units)

    def may_rest(self) -> bool:
        """From any thread."""
        return self._names.holds and time.monotonic() - self._looked_at > IDLE_S

    def rest(self) -> None:
        """What is known of directories takes memory, and is read again when it is needed."""
        if self.may_rest():
            self._names.forget()

    def _may_look(self) -> bool:
        if len(self._seen) >= MOST_LOOKED_AT or len(self._named) >= MOST_NAMED:
            return False
        now = time.monotonic()
        self._looks = min(AT_ONCE, self._looks + PER_SECOND * (now - self._looked_at))
        self._looked_at = now
        if self._looks < 1:
            return False
        self._looks -= 1
        return True

    def _look(
        self,
        bootstrap: rafs_v6.Bootstrap,
        obj: CacheObject,
        unit: int,
        modules: deque[tuple[CacheObject, int]],
        wanted: dict[CacheObject, list[int]],
    ) -> None:
        files = self.known.get(obj)
        if files is None or not files.directories[unit]:
            return
        off, end = obj.chunks.unit_range(unit)
        if end - off > LARGEST:
            return
        directory, kind = files.directories[unit], files.kinds[unit]
        names = imports_of(obj.read(off, end - off))
        found = self._names.files(names, directory, kind)
        if self._said and self._roots != self._names.roots and self._sought < MOST_SOUGHT:
            self._roots = list(self._names.roots)
            self._sought += 1
            found = self._names.files(self._said, directory, kind) + found
        self._take(bootstrap, found, modules, wanted)

    def _take(
        self,
        bootstrap: rafs_v6.Bootstrap,
        nids: Sequence[int],
        modules: deque[tuple[CacheObject, int]],
        wanted: dict[CacheObject, list[int]],
    ) -> None:
        for nid in nids:
            if nid in self._named:
                continue
            self._named.add(nid)
            for there, units in of_inodes(bootstrap, [bootstrap.inode(nid)], self._objects):
                if len(units) > 1:
                    if sum(map(there.size, units)) <= WHOLE_FILE:
                        there.load_program(units)
                elif there.is_present(units[0]):
                    modules.append((there, units[0]))
                else:
                    wanted.setdefault(there, []).append(units[0])


def _by_unit(column: array[int], firsts: Sequence[int]) -> array[int]:
    """In pieces: a reader's miss is waiting for the interpreter, perhaps."""
    found = array(column.typecode)
    for at in range(0, len(firsts), 4096):
        found.extend(map(column.__getitem__, firsts[at : at + 4096]))
    return found


def said_by(words: Sequence[bytes], cwd: bytes) -> tuple[list[bytes], list[bytes]]:
    """Paths and names of modules in a command line."""
    paths, names = [], []
    before = b""
    for word in words:
        if word.startswith(b"/"):
            paths.append(word)
        elif before == b"-m":
            names.append(word.replace(b".", b"/"))
        elif b" " in word:
            names += imports_of(b"#\n" + word.replace(b";", b"\n"))
        elif not word.startswith(b"-") and len(word) <= LONGEST_NAME:
            paths.append(cwd.rstrip(b"/") + b"/" + word)
        before = word
    return paths, [name for name in names if not name.startswith((b"/", b"."))]
