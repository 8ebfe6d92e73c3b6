"""Names that a module imports, as files of its image.

A name is sought as interpreters do it, without knowing which: beside the file, in the directories
above it that are no packages, and in those where modules were read before.  A compiled module
is taken for its source; other files only when they are of the kind of the file that names them, or
libraries.  Directories that were looked at are kept, so their number and size are bounded.  Used
by one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import rafs_v6
from nydus_fscache.core.files import kind_of
from rafs_v6.reader.resolve import resolve
from rafs_v6.values import dataclass

LEVELS = 4  # directories above a file
ROOTS = 8  # where modules were read
BELOW = (b"lib-dynload", b"node_modules")  # of a directory with modules: where others are
INDEXES = (b"__init__", b"index", b"package")  # what is read of a package
SOURCES = 3  # that are read beside their compiled forms: these are not used
COMPILED = b"__pycache__"
MOST_DIRECTORIES, MOST_ENTRIES = 512, 20_000
LARGEST = 2048 * 32  # bytes of a directory that is looked at
MOST_KNOWN = 16_384  # names

_PYC, _PY, _LIBRARY, _NONE = (kind_of(b"x" + suffix) for suffix in (b".pyc", b".py", b".so", b""))


@dataclass(slots=True)
class _Directory:
    """``files``: kind and nid, by the part of the name before the first dot."""

    parent: int
    files: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)
    below: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    files: tuple[int, ...] = ()
    packages: tuple[int, ...] = ()


class Names:
    """Of one image.  ``with_bootstrap`` before anything is asked."""

    def __init__(self) -> None:
        self._bootstrap: rafs_v6.Bootstrap | None = None
        self._directories: dict[int, _Directory] = {}
        self._entries = 0
        self.roots: list[int] = []  # where modules were read, the last first
        self._known: dict[tuple[int, int, bytes], _Found] = {}
        self._sources = 0  # read, though there are compiled ones beside them

    def with_bootstrap(self, bootstrap: rafs_v6.Bootstrap | None) -> None:
        self._bootstrap = bootstrap

    @property
    def holds(self) -> bool:
        return bool(self._directories)

    def forget(self) -> None:
        self._directories.clear()
        self._known.clear()
        self._entries = 0

    def files(self, names: list[bytes], directory: int, kind: int) -> list[int]:
        """The nids of files that a file of ``directory`` means by ``names``, likely ones first."""
        own = self._logical(directory)
        self._note_root(own)
        if kind == _PY:
            self._note_source(own)
        found: dict[int, None] = {}
        for name in names:
            for nid in self._named(name, own, kind):
                found[nid] = None
        return list(found)

    def at(self, paths: Sequence[bytes]) -> list[int]:
        """The nids of files that have these absolute paths."""
        return [nid for path in paths for nid in self._absolute(path)]

    def _named(self, name: bytes, own: int, kind: int) -> tuple[int, ...] | list[int]:
        if name.startswith(b"/"):
            return self._absolute(name)
        if name.startswith(b"."):
            at, parts = own, name.split(b"/")
            while parts and parts[0] in (b".", b".."):
                if parts.pop(0) == b"..":
                    at = self._directory(at).parent
            return self._descend(at, parts, kind)
        first, _, rest = name.partition(b"/")
        key = (own, kind, first)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            found = self._known[key] = self._sought(own, kind, first)
        if not rest:
            return found.files
        below: list[int] = []
        for package in found.packages:
            below += self._descend(package, rest.split(b"/"), kind)
        return below

    def _absolute(self, name: bytes) -> list[int]:
        assert self._bootstrap is not None
        try:
            inode = resolve(self._bootstrap, name)[1]
        except OSError:
            return []
        return [inode.nid] if inode.is_reg else []

    def _sought(self, own: int, kind: int, first: bytes) -> _Found:
        for base in self._bases(own):
            files = self._pick(base, first, kind)
            package = self._directory(base).below.get(first)
            if package is not None:
                files += self._index(package, kind)
            if files or package is not None:
                return _Found(tuple(files), () if package is None else (package,))
        return _Found()

    def _descend(self, at: int, parts: list[bytes], kind: int) -> list[int]:
        found: list[int] = []
        for part in parts:
            found += self._pick(at, part, kind)
            below = self._directory(at).below.get(part)
            if below is None:
                return found
            at = below
            found += self._index(at, kind)
        return found

    def _index(self, package: int, kind: int) -> list[int]:
        for name in INDEXES:
            if found := self._pick(package, name, kind):
                return found
        return []

    def _pick(self, at: int, name: bytes, kind: int) -> list[int]:
        directory = self._directory(at)
        stem = name.partition(b".")[0]
        if kind in (_PYC, _PY, _NONE) and self._sources < SOURCES:
            compiled = directory.below.get(COMPILED)
            if compiled is not None:
                files = self._directory(compiled).files.get(stem)
                if files:
                    return [nid for _, nid in files]
        files = directory.files.get(stem)
        if not files:
            return []
        same = [nid for other, nid in files if other == kind]
        if same:
            return same
        return [n for other, n in files if other == _LIBRARY or (kind == _NONE and len(files) < 3)]

    # -- directories ---------------------------------------------------------------------------

    def _logical(self, directory: int) -> int:
        """That of a module, not of its compiled form."""
        parent = self._directory(directory).parent
        is_compiled = self._directory(parent).below.get(COMPILED) == directory
        return parent if is_compiled else directory

    def _is_package(self, at: int) -> bool:
        directory = self._directory(at)
        compiled = directory.below.get(COMPILED)
        return INDEXES[0] in directory.files or (
            compiled is not None and INDEXES[0] in self._directory(compiled).files
        )

    def _above(self, own: int) -> list[int]:
        found: list[int] = []
        for _ in range(LEVELS):
            parent = self._directory(own).parent
            if parent == own:  # the root
                break
            if not self._is_package(own):
                found.append(own)
            own = parent
        return found

    def _bases(self, own: int) -> list[int]:
        found: dict[int, None] = {}
        for base in (*self._above(own), *self.roots):
            found[base] = None
            below = self._directory(base).below
            for name in BELOW:
                if name in below:
                    found[below[name]] = None
        return list(found)

    def _note_root(self, own: int) -> None:
        """Modules of this directory's kind are read: others may be sought there too."""
        above = self._above(own)
        if above and above[0] not in self.roots:
            self.roots.insert(0, above[0])
            del self.roots[ROOTS:]
            self._known.clear()

    def _note_source(self, own: int) -> None:
        directory = self._directory(own)
        compiled = directory.below.get(COMPILED)
        if compiled is None or self._sources >= SOURCES:
            return
        both = directory.files.keys() & self._directory(compiled).files.keys()
        self._sources += 2 * len(both) >= len(directory.files)
        self._known.clear()

    def _directory(self, nid: int) -> _Directory:
        known = self._directories.get(nid)
        if known is None:
            if len(self._directories) >= MOST_DIRECTORIES or self._entries > MOST_ENTRIES:
                self.forget()
            known = self._directories[nid] = self._read(nid)
        return known

    def _read(self, nid: int) -> _Directory:
        assert self._bootstrap is not None
        inode = self._bootstrap.inode(nid)
        found = _Directory(nid)
        if inode.size > LARGEST:
            parent = self._bootstrap.child(inode, b"..")
            found.parent = nid if parent is None else parent.nid
            return found
        for entry in self._bootstrap.read_dir(inode):
            if entry.name == b"..":
                found.parent = entry.nid
            elif entry.name == b".":
                continue
            elif entry.file_type == _DIRECTORY:
                found.below[entry.name] = entry.nid
            elif entry.file_type == _REGULAR:
                stem = entry.name.partition(b".")[0]
                found.files.setdefault(stem, []).append((kind_of(entry.name), entry.nid))
        self._entries += len(found.files) + len(found.below)
        return found


_REGULAR, _DIRECTORY = 1, 2  # EROFS_FT_*, docs/format.md
