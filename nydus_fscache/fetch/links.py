"""Images whose data are followed: libraries and interpreters that a started program needs are found
in its image and loaded, and so are modules that others import (chase.py).

Each round trip that the loader would make for one library after the other becomes one for all of
them.  What an image says of itself is followed within that image only, by one thread for all, and
only of an image that is read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rafs_v6
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.chase import Chase
from nydus_fscache.fetch.plan import WHOLE_FILE
from nydus_fscache.fetch.wanted import of_inodes
from nydus_fscache.image.elf import Needs
from nydus_fscache.kernel.commands import command_of
from rafs_v6.reader.resolve import resolve

log = logging.getLogger("links")

# Where the loaders of glibc and musl look, by what distributions have
_TRIPLETS = ("x86_64-linux-gnu", "aarch64-linux-gnu")
_DIRECTORIES = (
    *(f"/{top}/{triplet}" for top in ("lib", "usr/lib") for triplet in _TRIPLETS),
    "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib",
)  # fmt: skip
# Of an image that is read for the first time, mostly to start a program of it
_FIRST = Needs(
    paths=[
        "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1",
        "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1",
    ],
    libraries=["libc.so.6"],
)  # fmt: skip
# A process that starts another has two command lines, and the second one counts
LOOKS_AT_READER, MOST_READERS = 3, 16


class _Image:
    """The names of one image, looked up once each.  ``later``: have this called by the thread."""

    def __init__(
        self,
        bootstrap: Path,
        objects: Sequence[CacheObject],
        later: Callable[[Callable[[], None]], bool],
    ) -> None:
        self._path = bootstrap
        self._objects = objects
        self._later = later
        self._bootstrap: rafs_v6.Bootstrap | None = None  # closed
        self._is_read = False
        self._asked_by: dict[int, int] = {}  # processes, and how often their commands were read
        self._chase = Chase(objects)
        self._modules: deque[tuple[CacheObject, int]] = deque()  # to be looked at
        self._will_look = False
        self._seen: set[str] = set()
        self._directories: list[str] | None = None

    def demanded(self, obj: CacheObject, pid: int) -> None:
        if not self._is_read:
            self._is_read = True
            for each in self._objects:
                each.expect_kinds()
            if self._later(self._know):
                self._later(lambda: self._follow(_FIRST))
            else:
                self._give_up_kinds()
        looked = self._asked_by.get(pid, 0)
        if pid > 0 and looked < LOOKS_AT_READER and len(self._asked_by) < MOST_READERS:
            self._asked_by[pid] = looked + 1
            self._later(lambda: self._note_command(pid))

    def came(self, obj: CacheObject, units: Sequence[int]) -> None:
        self._modules.extend((obj, unit) for unit in units)
        if not self._will_look:
            self._will_look = True
            self._later(self._look)

    def program(self, needs: Needs) -> None:
        if not self._has_seen(needs):
            self._later(lambda: self._follow(needs))

    def rest(self) -> None:
        """Regularly."""
        if self._chase.may_rest():
            self._later(self._chase.rest)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[rafs_v6.Bootstrap]:
        """Not for longer: the file is asked whether the kernel alone has it."""
        if self._bootstrap is None:
            self._bootstrap = opened = rafs_v6.Bootstrap.from_file(self._path)
        else:
            opened = self._bootstrap.mapped_again(self._path)
        try:
            yield opened
        finally:
            opened.close()

    def _note_command(self, pid: int) -> None:
        words, cwd = command_of(pid)
        try:
            with self._opened() as bootstrap:
                self._chase.command(bootstrap, words, cwd, self._modules)
        except Exception:  # without its words: they are nobody's business
            log.warning("what a reader of %s will want is not loaded ahead", self._path)
        if self._modules:
            self._look()

    def _guess(self, lack: str, work: Callable[[rafs_v6.Bootstrap], None]) -> bool:
        """Did it end well?  A guess that fails costs nobody anything.  ``lack``: what there is not
        then, of %s."""
        try:
            with self._opened() as bootstrap:
                work(bootstrap)
        except OSError as e:  # moved, deleted, or no descriptor to spare
            log.warning(f"{lack}: %s", self._path, e)
        except Exception:
            log.warning(lack, self._path, exc_info=True)
        else:
            return True
        return False

    def _know(self) -> None:
        self._guess("the files of %s are not known", self._chase.know)
        self._give_up_kinds()

    def _give_up_kinds(self) -> None:
        for obj in self._objects:
            if obj not in self._chase.known:
                obj.know_kinds(())

    def _look(self) -> None:
        self._will_look = False  # before: what comes from now on is looked at again
        lack = "what modules of %s import is not loaded ahead"
        if not self._guess(lack, lambda opened: self._chase.follow(opened, self._modules)):
            self._modules.clear()

    def _has_seen(self, needs: Needs) -> bool:
        """A reader of everything meets thousands of programs, which need the same few files."""
        return self._seen.issuperset(needs.paths) and self._seen.issuperset(needs.libraries)

    def _follow(self, needs: Needs) -> None:
        if self._has_seen(needs):
            return
        lack = "what a program of %s needs is not loaded ahead"
        self._guess(lack, lambda opened: self._load_needs(opened, needs))

    def _load_needs(self, bootstrap: rafs_v6.Bootstrap, needs: Needs) -> None:
        for path in needs.paths:
            self._load(bootstrap, path)
        search = [d for d in needs.search if d.startswith("/")]
        for name in needs.libraries:
            if name not in self._seen:
                self._seen.add(name)
                self._find(bootstrap, name, search)
        self._seen.update(needs.paths)  # those that the image lacks too

    def _find(self, bootstrap: rafs_v6.Bootstrap, name: str, search: list[str]) -> None:
        if "/" in name:
            self._load(bootstrap, name)
            return
        if self._directories is None:
            self._directories = [d for d in _DIRECTORIES if self._inode(bootstrap, d) is not None]
        for directory in (*search, *self._directories):
            if self._load(bootstrap, f"{directory}/{name}"):
                return

    def _inode(self, bootstrap: rafs_v6.Bootstrap, path: str) -> rafs_v6.Inode | None:
        try:
            return resolve(bootstrap, path)[1]
        except OSError:
            return None

    def _load(self, bootstrap: rafs_v6.Bootstrap, path: str) -> bool:
        inode = self._inode(bootstrap, path)
        if inode is None or not inode.is_reg:
            return False
        if path not in self._seen:
            self._seen.add(path)
            for obj, units in of_inodes(bootstrap, [inode], self._objects):
                is_large = sum(obj.size(unit) for unit in units) > WHOLE_FILE
                # of a large one the parts that the loader looks at
                obj.load_program([units[0], units[-1]] if is_large else units)
        return True


class Links:
    """For all mounted images.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: dict[str, _Image] = {}
        self._worker = ThreadPoolExecutor(1, "links")

    def add(self, digest: str, bootstrap: Path, objects: Sequence[CacheObject]) -> None:
        with self._lock:
            if digest in self._images:
                return
            image = self._images[digest] = _Image(bootstrap, objects, self._later)
        for obj in objects:
            obj.followers[digest] = image

    def _later(self, work: Callable[[], None]) -> bool:
        """False: this process ends."""
        try:
            self._worker.submit(work)
        except RuntimeError:
            log.debug("nothing is loaded ahead any more")
            return False
        return True

    def rest(self) -> None:
        with self._lock:
            images = list(self._images.values())
        for image in images:
            image.rest()

    def remove(self, digest: str, objects: Iterable[CacheObject]) -> None:
        with self._lock:
            self._images.pop(digest, None)
        for obj in objects:
            obj.followers.pop(digest, None)
