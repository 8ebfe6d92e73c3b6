"""Keeps ``state.json`` up to date: the bindings that a successor is to serve.

Guarantees: nothing is served that is not on record before its mount.  Room for a record is set
aside, so that a full disk does not hold up what cannot be undone: a mount that somebody moved is
found by its name, or not at all.  Where the disk has no room even so, the record lags: it is
written again later, and until then a successor sees by itself what is not mounted any more.

``write`` compares everything with what is on the disk, and writes what differs.  What each mount
and unmount does names what it has changed, and looks at nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence

from nydus_fscache.daemon.active_mount import ActiveMount
from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.errors import CacheDirError
from nydus_fscache.handover.retry_queue import RetryQueue
from nydus_fscache.handover.state import LOGGED_VERSION, line_of
from nydus_fscache.handover.state_file import StateFile
from nydus_fscache.image.binding import Binding
from rafs_v6.values import dataclass

log = logging.getLogger("service")

RESERVE = 1 << 20  # bytes: the record of some two thousand mounts


@dataclass(slots=True)
class _Line:
    """Of a binding, as it is on the disk; ``number``: its name in the log."""

    binding: Binding
    text: str
    number: int


class Record:
    """Thread-safe."""

    def __init__(self, engine: Engine, mounts: MountTable, waiting: RetryQueue) -> None:
        self._engine = engine
        self._mounts = mounts
        self._waiting = waiting
        self._file = StateFile(engine.state_path)
        self._lines: dict[int, _Line] = {}  # by the binding's identity
        self._numbers: dict[str, int] = {}  # of objects, and
        self._limit = -1  # the cache's: as they are on the disk
        self._next = 0
        self._whole = False
        self._soon: dict[int, ActiveMount] = {}
        self._behind = False  # a write has failed
        self._is_due = False
        self._reserve = engine.state_path.with_name("state.reserve")
        self._has_reserve = self._ended = False

    def bindings(self) -> list[Binding]:
        with self._mounts.lock:
            active = [a.binding for a in self._mounts.all()]
            return active + [w.binding for w in self._waiting.all()]

    # -- what changed is known ---------------------------------------------------------------

    def enter(self, active: ActiveMount) -> None:
        """One more; raises ``CacheDirError``."""
        self._write_some([active], [])

    def update(self, *active: ActiveMount) -> None:
        """What is on record of them is out of date."""
        with self._mounts.lock:
            self._save(lambda: self._write_some([a for a in active if self._has(a)], []))

    def update_soon(self, active: ActiveMount) -> None:
        """By the next ``catch_up``."""
        with self._mounts.lock:
            self._soon[id(active.binding)] = active

    def forget(self, bindings: Iterable[Binding]) -> None:
        self._save(lambda: self._write_some([], list(bindings)))

    def _has(self, active: ActiveMount) -> bool:
        return id(active.binding) in self._lines

    # -- what changed is not known -----------------------------------------------------------

    def write(self) -> None:
        """Raises ``CacheDirError``."""
        with self._mounts.lock:
            self._soon.clear()
            self._is_due = False
            bindings = self.bindings()
            there = {id(b) for b in bindings}
            gone = [line.binding for key, line in self._lines.items() if key not in there]
            self._write(bindings, gone, self._engine.objects.numbers())

    def save(self) -> None:
        self._save(self.write)

    def save_soon(self) -> None:
        """By the next ``catch_up``."""
        self._is_due = True

    def catch_up(self) -> None:
        if self._behind or self._is_due:
            self.save()
        with self._mounts.lock, contextlib.suppress(OSError):
            if self._soon:
                soon, self._soon = self._soon, {}
                self.update(*soon.values())
            if not (self._has_reserve or self._ended):
                self._set_aside()

    def write_whole(self, *, on: bool = True) -> None:
        """From now on without a log: who reads it next may be of an older version."""
        with self._mounts.lock:
            self._whole = on
            if on and self._file.is_logged:
                self.save()

    def close(self) -> None:
        """``save`` for the last time."""
        self.write_whole()
        self.save()
        with self._mounts.lock, contextlib.suppress(OSError):
            self._ended = True
            if self._engine.store.is_in_place():
                self._reserve.unlink(missing_ok=True)

    # -- writing -----------------------------------------------------------------------------

    def write_state(self) -> None:
        """The engine's state as it stands; raises ``OSError``."""
        engine = self._engine
        self._with_room(lambda: engine.state.save(engine.state_path))

    def _save(self, write: Callable[[], None]) -> None:
        try:
            write()
        except CacheDirError as e:
            log.error("%s", e)

    def _write_some(self, changed: Sequence[ActiveMount], gone: list[Binding]) -> None:
        with self._mounts.lock:
            if self._behind:
                self.write()
                return
            for binding in gone:
                self._soon.pop(id(binding), None)
            numbers = {o.name: o.oid for a in changed for o in a.objects}
            self._write([a.binding for a in changed], gone, numbers)

    def _write(self, bindings: list[Binding], gone: list[Binding], numbers: dict[str, int]) -> None:
        texts = [(b, line_of(b)) for b in bindings]
        changed = [(b, t) for b, t in texts if (o := self._lines.get(id(b))) is None or o.text != t]
        gone = [b for b in gone if id(b) in self._lines]
        numbers = {n: oid for n, oid in numbers.items() if self._numbers.get(n) != oid}
        limit = self._engine.quota.limit
        must_be_whole = self._whole and self._file.is_logged
        if not (changed or gone or numbers or limit != self._limit or must_be_whole):
            self._behind = False
            return
        self._behind = True
        try:
            self._put(changed, gone, numbers, limit)
        except OSError as e:
            self._limit = -1  # the change may be there: something is to be written again
            raise CacheDirError(
                f"cannot write {self._engine.state_path}: {e.strerror}",
                hint="free some space, or choose another --root",
            ) from e
        self._behind = False

    def _put(
        self,
        changed: list[tuple[Binding, str]],
        gone: list[Binding],
        numbers: dict[str, int],
        limit: int,
    ) -> None:
        """Raises ``OSError``; what is believed to be on the disk is then as it was."""
        if not self._file.is_logged or self._file.is_long or self._whole:
            try:
                self._replace(changed, gone, limit)
                return
            except OSError:
                if not self._file.is_logged:
                    raise
                # there may be room for the change
        lines: dict[int, _Line] = {}
        following = self._next
        for binding, text in changed:
            known = self._lines.get(id(binding))
            lines[id(binding)] = _Line(binding, text, known.number if known else following)
            following += known is None
        numbered = ", ".join(f"[{line.number}, {line.text}]" for line in lines.values())
        rest = json.dumps({
            "gone": [self._lines[id(binding)].number for binding in gone],
            "numbers": numbers, "cache_limit": limit,
        })  # fmt: skip
        self._with_room(lambda: self._file.append(f'{{"set": [{numbered}], {rest[1:]}'))
        for binding in gone:
            del self._lines[id(binding)]
        self._lines |= lines
        self._next = following
        self._numbers |= numbers
        self._limit = limit

    def _replace(
        self, changed: list[tuple[Binding, str]], gone: list[Binding], limit: int
    ) -> None:
        texts = {key: (line.binding, line.text) for key, line in self._lines.items()}
        texts |= {id(binding): (binding, text) for binding, text in changed}
        for binding in gone:
            texts.pop(id(binding), None)
        state = self._engine.state
        state.numbers, state.cache_limit = self._engine.objects.numbers(), limit
        state.bindings = [binding for binding, _ in texts.values()]
        logged = None if self._whole else LOGGED_VERSION
        lines = [text for _, text in texts.values()]
        self._with_room(lambda: self._file.replace(lines, state.rest(), logged))
        self._lines = {
            key: _Line(binding, text, number)
            for number, (key, (binding, text)) in enumerate(texts.items())
        }
        self._next = len(lines)
        self._numbers, self._limit = dict(state.numbers), limit

    # -- room on a full disk -----------------------------------------------------------------

    def _with_room(self, write: Callable[[], None]) -> None:
        self._engine.store.check_place()
        try:
            write()
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._has_reserve = False
            self._reserve.unlink(missing_ok=True)
            write()

    def _set_aside(self) -> None:
        fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE)
            self._has_reserve = True
        except OSError:
            self._reserve.unlink()
            raise
        finally:
            os.close(fd)
