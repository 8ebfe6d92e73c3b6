"""The one truth about mounts: every mount of this daemon, from the claim of its place to its end.

Guarantees: this alone mounts and unmounts; one mount of ours at a place; a mount is known by the
kernel's name of it, so that only ours is ever unmounted, wherever it was moved to and whatever
lies on top; what the kernel says is believed over what was done here; work that could mount is
counted from its first line, so that the daemon ends only when nothing can be mounted any more.

Claimed (a place is taken), mounting, mounted, unmounted with a superblock that is in use: see
``Phase``.  "Ending" is a state of the whole table.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from nydus_fscache.daemon.active_mount import ActiveMount, Phase
from nydus_fscache.errors import DaemonEnding, DaemonError, MountpointError
from nydus_fscache.image.binding import Binding
from nydus_fscache.kernel import holders, mountinfo
from nydus_fscache.kernel.mount import IMAGE_TYPES, umount
from nydus_fscache.kernel.mountinfo import MountId
from nydus_fscache.kernel.syscalls import boot_id
from nydus_fscache.log import event
from nydus_fscache.transport.base import Bound
from nydus_fscache.transport.registry import Transports
from nydus_fscache.transport.umount import umount_apart

log = logging.getLogger("mounts")

END_PATIENCE_S = 90.0  # for work under way, when the daemon is to end
WATCH_S = 1.0
SETTLE_S = 0.05  # between two looks at the mount table: changes come in crowds,
SETTLE_TIMES = 30  # and of thousands of mounts a look takes long itself


class MountTable:
    """Thread-safe.  ``lock``: for those who look at several mounts at once."""

    def __init__(self, transports: Transports, root: Path) -> None:
        self.lock = threading.RLock()
        self.on_change: Callable[[], object] = list  # somebody else unmounted one
        self.on_move: Callable[[], object] = list  # or moved one, whose place is its name no more
        self._idle = threading.Condition(self.lock)
        self._unmounting = threading.Lock()  # nobody of ours mounts between a look and an umount
        self._transports = transports
        self._umount_hint = f"nydus-fscache umount --root {root} "
        self._active: list[ActiveMount] = []
        self._ours: set[MountId] = set()  # which are unmounted by us just now
        self._claims: set[tuple[str, tuple[int, int]]] = set()  # path; device and inode below
        self._working = 0
        self._ending = False
        self._stopping = False  # and what is under way is in vain

    # -- who may begin, and the end ----------------------------------------------------------

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Around all that may mount or bind; raises ``DaemonEnding``."""
        with self.lock:
            if self._ending:
                raise DaemonEnding("the daemon is ending", hint="try again in a moment")
            self._working += 1
        try:
            yield
        finally:
            with self.lock:
                self._working -= 1
                self._idle.notify_all()

    def refuse_work(self, *, stopping: bool) -> None:
        """From now on.  ``stopping``: what is under way is to end too, else it goes on."""
        with self.lock:
            self._ending, self._stopping = True, stopping

    def allow_work(self) -> None:
        """The daemon does not end after all."""
        with self.lock:
            self._ending = self._stopping = False

    def end_if_idle(self) -> bool:
        """``refuse_work`` unless something is under way, mounted or bound."""
        with self.lock:
            if not (self._working or self._active):
                self._ending = True
            return self._ending

    def wait_for_work(self) -> None:
        """Until all work has ended that was under way; raises ``DaemonError``."""
        with self.lock:
            if not self._idle.wait_for(lambda: not self._working, END_PATIENCE_S):
                raise DaemonError("a mount is still under way", hint="try again when it has ended")

    def check_going_on(self) -> None:
        """For work under way that is about to do more; raises ``DaemonError``: who had it begun
        before the end was asked for is told that it was in vain."""
        if self._stopping:
            raise DaemonError("the daemon was stopped meanwhile", hint="mount it again")

    # -- what there is -----------------------------------------------------------------------

    def all(self) -> list[ActiveMount]:
        with self.lock:
            return list(self._active)

    def mounted_at(self, mountpoint: str) -> ActiveMount | None:
        """Ours at a path, by whatever spelling."""
        names = {os.path.realpath(mountpoint), mountpoint}
        found = self._ours_at(names)
        if found is None or not self._is_there(found):  # else all the others need no look
            self.refresh()
            found = self._ours_at(names)
        return found

    def _ours_at(self, names: set[str]) -> ActiveMount | None:
        with self.lock:
            there = (a for a in self._active if a.binding.mountpoint in names and a.mounted)
            return next(there, None)

    def _is_there(self, active: ActiveMount) -> bool:
        """Does the kernel have it where it is believed to be?"""
        name = active.mount
        if name is None:
            return False
        now = mountinfo.look_up([name]).get(name)
        return now is not None and now.mountpoint == active.binding.mountpoint

    def devices(self) -> set[str]:
        """Of the file systems that this daemon serves."""
        with self.lock:
            return {a.mount.device for a in self._active if a.mount is not None}

    def add(self, active: ActiveMount) -> None:
        with self.lock:
            self._active.append(active)

    def remove(self, active: ActiveMount) -> None:
        with self.lock:
            self._active.remove(active)

    # -- mounting ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self, point: Path) -> Iterator[None]:
        """The place of a mount that is coming (a directory, its path resolved).

        Raises ``MountpointError`` when something is mounted or about to be mounted there.
        """
        status = point.stat()
        below = status.st_dev, status.st_ino
        with self.lock:
            stack = list(mountinfo.stack_at(point).values())
            if stack or self._ours_at({str(point)}):  # which may be hidden by now, or gone
                self.refresh()
            ours = self._ours_at({str(point)})
            if stack or ours is not None:
                hint = f"{self._umount_hint}{point}" if ours else "name another directory"
                what = "is busy" if ours else f"is busy: {_described(stack[-1])} is mounted there"
                raise MountpointError(f"mountpoint {point} {what}", hint=hint)
            if any(str(point) == path or below == inode for path, inode in self._claims):
                raise MountpointError(
                    f"mountpoint {point} is busy: another mount has begun there",
                    hint="name another directory",
                )
            self._claims.add((str(point), below))
        try:
            yield
        finally:
            with self.lock:
                self._claims.discard((str(point), below))

    def mount(self, active: ActiveMount) -> None:
        """In the phase ``MOUNTING``; returns when it is ready to read."""
        binding = active.binding
        point = binding.mountpoint
        # of this place alone: the number of a mount that goes elsewhere may be given to this one
        before = mountinfo.stack_at(Path(point))
        name = self._transports.get(binding.transport).mount(active.bound, Path(point))
        with self.lock:
            if name is None:
                after = mountinfo.stack_at(Path(point))
                name = _ours_of({n: m for n, m in after.items() if n not in before}, point)
            active.mount = name
            # none: somebody has unmounted it already
            active.phase = Phase.MOUNTED if active.mount is not None else Phase.SUPERBLOCK
            if active.mount is not None:
                _record(binding, active.mount)

    def adopt(
        self,
        binding: Binding,
        bindings: Iterable[Binding],
        table: mountinfo.Table | None = None,
    ) -> MountId | None:
        """The mount that an earlier service made, if it is still there; wherever it is now.
        ``bindings``: all that there are, whose mounts by name are not this one's.  ``table``: a
        look at the mounts from before, which ``watch`` sets right later."""
        if not binding.mountpoint:
            return None
        name = _recorded(binding)
        if name is not None and is_replaced(binding) and not mountinfo.look_up([name], table):
            name = None
        if name is None:  # killed before it was on record
            there = (table or mountinfo.Table()).at(binding.mountpoint)  # hidden or not
            old = {m.id: m for m in there if m.fstype in IMAGE_TYPES}
            named = [a.mount for a in self.all() if a.mounted and a.mount is not None]
            named += [n for b in bindings if b is not binding and (n := _recorded(b)) is not None]
            for known in mountinfo.look_up(n for n in named if n.id in old).values():
                old.pop(known.id, None)
            left = {MountId(0, m.id, m.device): m for m in old.values()}
            name = _ours_of(left, binding.mountpoint)
        if name is None or (found := mountinfo.look_up([name], table).get(name)) is None:
            return None
        binding.mountpoint = found.mountpoint
        _record(binding, name)
        return name

    def must_go(self, binding: Binding) -> bool:
        """Is it the mount that was to be replaced when its service was killed?"""
        name = _recorded(binding)
        return name is not None and is_replaced(binding) and name in mountinfo.look_up([name])

    # -- unmounting --------------------------------------------------------------------------

    def umount(self, active: ActiveMount, *, lazy: bool = False) -> None:
        """Nothing to do when it is unmounted already.

        Raises ``MountpointError`` when it is in use, or cannot be reached since something else is
        mounted on top of it.
        """
        if not active.mounted or active.mount is None:
            return
        try:
            with self._by_us(active.mount):
                self.umount_name(active.mount, lazy=lazy)
                active.phase = Phase.SUPERBLOCK
        except MountpointError:
            self.refresh()  # somebody else may have unmounted it meanwhile
            raise

    @contextlib.contextmanager
    def _by_us(self, name: MountId) -> Iterator[None]:
        """For ``refresh``: what is gone now was not unmounted by others."""
        with self.lock:
            self._ours.add(name)
        try:
            yield
        finally:
            with self.lock:
                self._ours.discard(name)

    def umount_name(self, name: MountId, *, lazy: bool = False) -> None:
        """The same, of a mount that is not bound."""
        with self._unmounting:
            now = mountinfo.look_up([name]).get(name)
            if now is None:
                return
            point = Path(now.mountpoint)
            _check_reachable(name, point)
            try:
                if now.source.startswith("/dev/loop"):
                    umount_apart(point, lazy=lazy)
                else:
                    umount(point, lazy=lazy)
            except MountpointError as e:
                if name not in mountinfo.look_up([name]):
                    return
                below = [m.mountpoint for m in mountinfo.mounts() if m.parent == now.id]
                if below:
                    raise MountpointError(
                        f"cannot unmount {point}: {below[0]} is mounted in it",
                        hint=f"umount {below[0]}, then try again",
                    ) from e
                raise

    # -- what others do ----------------------------------------------------------------------

    def refresh(self) -> None:
        """Compare with the kernel what is believed to be mounted."""
        unmounted = moved = False
        with self.lock:
            named = {a.mount: a for a in self._active if a.mounted and a.mount is not None}
            for name in self._ours:
                named.pop(name, None)
            if not named:
                return
            found = mountinfo.look_up(named)
            for name, active in named.items():
                now, was = found.get(name), active.binding.mountpoint
                if now is None:
                    log.info("%s was unmounted by somebody else", was)
                    event("unmounted", mountpoint=was, image=active.name, by="others")
                    active.phase = Phase.SUPERBLOCK
                    unmounted = True
                elif now.mountpoint != was:
                    log.info("%s was moved to %s", was, now.mountpoint)
                    event("moved", mountpoint=now.mountpoint, was=was, image=active.name)
                    active.binding.mountpoint = now.mountpoint
                    moved = True
        if moved:
            self.on_move()
        elif unmounted:
            self.on_change()

    def watch(self, stopped: threading.Event) -> None:
        """Until then, in a thread of its own: ``refresh`` when the kernel's table has changed."""
        watch = mountinfo.Watch()
        changed = True  # before it was watched
        try:
            while not stopped.is_set():
                if changed or watch.wait(WATCH_S):
                    changed, began = False, time.monotonic()
                    try:
                        self.refresh()
                    except Exception:  # the next look may fare better
                        log.exception("the mount table cannot be read")
                    stopped.wait(max(SETTLE_S, SETTLE_TIMES * (time.monotonic() - began)))
        finally:
            watch.close()

    def take_back(self, binding: Binding) -> bool:
        """Is it served still, though its user gave it up?  Then it is the user's again."""
        with self.lock:
            for active in self._active:
                same = active.binding.address == binding.address and not active.binding.mountpoint
                if same and active.phase is Phase.SUPERBLOCK and active.digest == binding.digest:
                    active.phase = Phase.USERS
                    return True
        return False

    # -- letting go --------------------------------------------------------------------------

    def take_unused(self) -> list[ActiveMount]:
        """Unmounted ones that the kernel has let go of; they are in the table no more."""
        with self.lock:
            left = [a for a in self._active if a.phase is Phase.SUPERBLOCK]
            mounted = self._mounted() if left else {}
            gone = [a for a in left if not self._in_use(a, mounted)]
            if gone:
                those = set(gone)
                self._active = [a for a in self._active if a not in those]
            return gone

    def take_all(self) -> list[ActiveMount]:
        with self.lock:
            gone, self._active = self._active, []
            return gone

    def in_use(self, active: ActiveMount) -> bool:
        """Does the kernel have the superblock of an image that is not mounted by us?"""
        with self.lock:
            mounted = self._mounted()
        return self._in_use(active, mounted)

    def _mounted(self) -> dict[str, list[Bound]]:
        """By transport; with the lock."""
        found: dict[str, list[Bound]] = {}
        for active in self._active:
            if active.mounted:
                found.setdefault(active.binding.transport, []).append(active.bound)
        return found

    def _in_use(self, active: ActiveMount, mounted: dict[str, list[Bound]]) -> bool:
        name = active.binding.transport
        return self._transports.get(name).in_use(active.bound, mounted.get(name, []))

    def release_held(self, patience_s: float, release: Callable[[], None]) -> list[str]:
        """Wait for the kernel to let go of all that is unmounted: which it has still, and why."""
        until = time.monotonic() + patience_s
        while True:
            release()
            held = [a for a in self.all() if a.phase is Phase.SUPERBLOCK]
            if not held or time.monotonic() > until:
                return [_why_held(a) for a in held]
            time.sleep(0.02)


def _record(binding: Binding, name: MountId) -> None:
    # numbers begin anew at a boot
    binding.mount = {**asdict(name), "boot": boot_id()}


def note_replacement(binding: Binding) -> None:
    """Its mount, which is on record, goes now and another comes: to be saved before."""
    binding.mount["replaced"] = True


def is_replaced(binding: Binding) -> bool:
    """Was it about to be mounted again when its service was killed?"""
    return bool(binding.mount.get("replaced")) and _recorded(binding) is not None


def _recorded(binding: Binding) -> MountId | None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        told = binding.mount
        if told["boot"] != boot_id():
            return None
        return MountId(int(told["unique"]), int(told["id"]), str(told["device"]))
    return None


def _ours_of(found: dict[MountId, mountinfo.Mount], point: str) -> MountId | None:
    """The lowest image of these mounts at a place: ours is there before others mount on top."""
    if not found:
        return None
    ours = next((n for n, m in found.items() if m.fstype in IMAGE_TYPES), next(iter(found)))
    with contextlib.suppress(OSError):
        top = mountinfo.mount_id_at(Path(point))
        if top.id == ours.id:
            return top
    return ours


def _check_reachable(name: MountId, point: Path) -> None:
    """umount(2) takes a path, and takes off whatever that leads to."""
    try:
        top = mountinfo.mount_id_at(point)
    except OSError as e:
        raise MountpointError(
            f"cannot unmount {point}: {e.strerror}", hint="unmount what hides it, then try again"
        ) from e
    same = top.unique == name.unique if name.unique else (top.id, top.device) == (
        name.id, name.device,
    )  # fmt: skip
    if same:
        return
    cover = next((m for m in mountinfo.mounts() if m.id == top.id), None)
    where = cover.mountpoint if cover is not None else str(point)
    what = _described(cover) if cover is not None else "something else"
    raise MountpointError(
        f"cannot unmount {point}: {what} is mounted on top of it at {where}",
        hint=f"umount {where}, then try again",
    )


def _described(mount: mountinfo.Mount) -> str:
    return f"{mount.fstype} ({mount.source})" if mount.source != "none" else mount.fstype


def _why_held(active: ActiveMount) -> str:
    """With who has it, as far as that can be seen."""
    device = active.mount.device if active.mount is not None else ""
    reasons = holders.of_device(device) if device else []
    return active.name + (f" ({'; '.join(reasons)})" if reasons else "")
