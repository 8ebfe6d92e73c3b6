"""The transports: which there are, in the order in which ``auto`` takes them, and those in use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from nydus_fscache.cache.evict import EvictionSource
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park
from nydus_fscache.errors import FscacheError, KernelRefused, NotPrivileged, UsageError
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.image.binding import Binding
from nydus_fscache.kernel import probe
from nydus_fscache.kernel.probe import Report
from nydus_fscache.transport.base import Dialect, Transport
from nydus_fscache.transport.cachefiles.dialect import CachefilesDialect
from nydus_fscache.transport.fanotify.dialect import FanotifyDialect
from nydus_fscache.transport.fuse.dialect import (
    FuseFileDialect,
    FuseLoopDialect,
    FuseTreeDialect,
)
from rafs_v6.values import dataclass

log = logging.getLogger("transport")

DIALECTS: tuple[type[Dialect], ...] = (
    CachefilesDialect,  # first: without a daemon it fails closed
    FanotifyDialect,
    FuseFileDialect,
    FuseLoopDialect,
    FuseTreeDialect,  # last: a round trip for each small file and each directory
)
TRANSPORTS = tuple(dialect.name for dialect in DIALECTS)
FAMILIES = {
    "auto": TRANSPORTS,
    "fuse": tuple(name for name in TRANSPORTS if name.startswith("fuse-")),
}


def examine(root: Path) -> Report:
    """Everything, for ``doctor``."""
    return probe.examine(
        root,
        {dialect.name: dialect.probe for dialect in DIALECTS},
        frozenset(dialect.name for dialect in DIALECTS if not dialect.needs_erofs),
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """``reasons``: for each transport that was asked and does not work, why."""

    transport: str
    reasons: Mapping[str, str]


def choose(root: Path, wanted: str = "auto") -> Choice:
    """The transport for ``wanted`` (a name, or one of ``FAMILIES``); only as many are probed as it
    takes.

    Raises ``NotPrivileged``, ``CacheDirError``, or ``KernelRefused`` with the reason
    and the remedy for each transport.
    """
    rights = probe.privileges()
    if not rights.ok:
        raise NotPrivileged(rights.detail, hint=rights.remedy)
    probe.require_cache_dir(root)
    driver = probe.erofs_driver()
    failed = [] if driver.ok else [driver]
    for dialect in DIALECTS:
        if dialect.name not in FAMILIES.get(wanted, (wanted,)):
            continue
        if dialect.needs_erofs and not driver.ok:
            continue
        finding = dialect.probe(root)
        if finding.ok:
            return Choice(dialect.name, {f.name: f.detail for f in failed})
        failed.append(finding)
    reasons = "; ".join(f"{f.name}: {f.detail}" for f in failed)
    remedies = ", or ".join(f.remedy for f in failed)
    kind = "no transport works" if wanted in FAMILIES else "this transport does not work"
    raise KernelRefused(f"{kind}: {reasons}", hint=remedies)


def eviction_sources(store: Store) -> list[EvictionSource]:
    """Of all transports, while no daemon runs."""
    return [source for dialect in DIALECTS for source in dialect(store).sources()]


class Transports:
    """Each is made when it is first asked for.  Thread-safe."""

    def __init__(self, core: Core, objects: Objects, park: Park, store: Store) -> None:
        self._core = core
        self._objects = objects
        self._park = park
        self._store = store
        self._dialects = {dialect.name: dialect(store) for dialect in DIALECTS}
        self._lock = threading.Lock()
        self._by_name: dict[str, Transport] = {}
        self._probing = threading.Lock()
        self._chosen: dict[str, str] = {}  # of families; a probe takes longer than a mount

    def get(self, name: str) -> Transport:
        """Raises ``UsageError`` for a name that is not known, ``KernelRefused``."""
        dialect = self._dialect(name)
        with self._lock:
            if name not in self._by_name:
                self._by_name[name] = dialect.open(self._core, self._objects, self._park)
            return self._by_name[name]

    def _dialect(self, name: str) -> Dialect:
        if name not in self._dialects:
            raise UsageError(f"no transport {name!r}", hint=f"one of {', '.join(TRANSPORTS)}")
        return self._dialects[name]

    def in_use(self) -> dict[str, Transport]:
        with self._lock:
            return dict(self._by_name)

    def take_up(self) -> None:
        """Those that were left: no image is, but a reader or a mount may be, which waits,
        unkillable, for a "no"."""
        for name, dialect in self._dialects.items():
            if dialect.was_left(self._park):
                self.get(name)

    def holds(self, binding: Binding) -> bool:
        """See ``Dialect.holds``."""
        return self._dialect(binding.transport).holds(binding, self._park)

    def is_useless(self, binding: Binding) -> bool:
        """See ``Dialect.is_useless``; to be asked before anything is bound."""
        dialect = self._dialects.get(binding.transport)  # an unknown one fails when it is bound
        return dialect is not None and dialect.is_useless(binding, self._park)

    def sources(self) -> list[EvictionSource]:
        return [source for dialect in self._dialects.values() for source in dialect.sources()]

    def choose(self, wanted: str) -> str:
        """The first that works, whichever others are in use: what was cached by one is another's
        too.  The very first is not probed while it is in use (a second open is refused)."""
        if wanted not in FAMILIES:
            self._dialect(wanted)
        family = FAMILIES.get(wanted, (wanted,))
        with self._probing:
            if family[0] in self.in_use():
                return family[0]
            if wanted not in self._chosen:
                found = choose(self._store.root, wanted).transport
                if wanted not in FAMILIES:
                    return found
                self._chosen[wanted] = found
            return self._chosen[wanted]

    def prepare(self) -> None:
        """Find out the transport of "auto" before a mount asks; where nothing works, that is in
        the log before anybody wonders why no image can be mounted.  Not in a successor, which has
        readers to serve."""
        if self.in_use():
            return
        try:
            self.choose("auto")
        except FscacheError as e:
            log.error("no image can be mounted here: %s; %s", e, e.hint)
