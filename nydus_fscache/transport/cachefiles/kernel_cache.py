"""What the kernel has cached for us over cachefiles on-demand, and what it holds open.

The kernel never asks for what its file has.  So a file that was filled for another
description of the same name must go before an image is served under that name:

    DIRECTORY/cache/Ierofs,DOMAIN/@HH/DCOOKIE   the kernel's; COOKIE is the fsid or a blob id
    DIRECTORY/graveyard/                        directories that the kernel has culled
    DIRECTORY/identities/DOMAIN.json            which description a blob's data were verified
                                                against: {blob id: identity}
    DIRECTORY/used-in                           the boot during which data were written

As an eviction source (cache/evict.py) it calls a file DOMAIN/COOKIE.  When it was used last
is its time of modification, which is renewed when an image is bound and when it is unbound.
While the device is bound only the kernel deletes (cull.py), because only it knows what it uses.

Source: reference kernel-transports 1.7, 1.9; fscache/cookie.c and volume.c (Linux 6.1) for /proc.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nydus_fscache.cache.evict import Cached
from nydus_fscache.errors import CacheDirError, KernelRefused, UsageError
from nydus_fscache.files import data_ranges, remove, replace_file, status_of_ours, sync
from nydus_fscache.kernel.syscalls import boot_id, syncfs
from nydus_fscache.transport.cachefiles import cull

log = logging.getLogger("cachefiles")

PROC = Path("/proc/fs/fscache")
USED_IN = "used-in"
_NAME = re.compile(r"[A-Za-z0-9._:@+=-]{1,128}")
BRUN = 0.07  # of the disk: when so much is free, the kernel wants no culling any more
CULL_S = 60.0  # for a batch; the kernel waits for nobody but its disk
_GONE = (0, errno.ESTALE, errno.ENOENT)
_STAYS = (errno.EBUSY, errno.EISDIR)  # in use; a volume that only the kernel could delete
_VOLUME = "Ierofs,"
_HELD = "try again when what was mounted in this domain is gone; see /proc/fs/fscache/cookies"


def checked_name(name: str, what: str) -> str:
    """An fsid or domain that is safe as a file name and as a mount option."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{what} {name[:40]!r} cannot be used",
            hint="take 1 to 128 of: letters, digits, '.', '_', ':', '@', '+', '=', '-'",
        )
    return name


def open_cookies(domain: str) -> dict[str, bool]:
    """What the kernel holds open in a domain, or is just letting go of; whatever became of
    us.  The value: is it active, hence no first open of it is under way?  A cookie that is not
    listed has its data under its final name, or none."""
    return _all_open_cookies().get(domain, {})


def _all_open_cookies() -> dict[str, dict[str, bool]]:
    """The same of all domains."""
    volumes: dict[str, str] = {}
    found: dict[str, dict[str, bool]] = {}
    with contextlib.suppress(FileNotFoundError):  # nothing was ever mounted
        for line in (PROC / "volumes").read_text(errors="replace").splitlines():
            words = line.split(None, 6)
            if len(words) == 7 and words[6].startswith("erofs,"):
                volumes[words[0]] = words[6].removeprefix("erofs,")
        for line in (PROC / "cookies").read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) > 7 and words[1] in volumes:
                with contextlib.suppress(ValueError):
                    name = bytes.fromhex(words[7].rstrip(",")).decode("utf-8", "replace")
                    found.setdefault(volumes[words[1]], {})[name] = words[5] == "A"
    return found


class KernelCache:
    """The directory that the kernel caches in.  Thread-safe.

    ``device``: /dev/cachefiles, once it is bound to the directory.
    ``written``: bytes in what is open, by the source's names; a file that is new has no name in
    the directory until the kernel closes it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.device = -1
        self.written: Callable[[], Mapping[str, int]] = dict
        self._lock = threading.RLock()
        self._paths: dict[str, Path] = {}  # of files that were read
        self._bound: dict[str, dict[str, set[str]]] = {}  # cookies by domain and fsid

    def prepare(
        self, domain: str, fsid: str, bootstrap: Path, blobs: Mapping[str, str]
    ) -> None:
        """Before an image is served: nothing that was filled for another one stays, and what is
        its own does until ``let_go``.

        ``blobs``: {blob id: identity}.  Raises ``KernelRefused`` when the kernel holds open
        what would have to go.
        """
        with self._lock:
            self._forget_others(domain, fsid, bootstrap, blobs)
            self._bound.setdefault(domain, {})[fsid] = {fsid, *blobs}
            self._touch(domain, {fsid, *blobs})

    def let_go(self, domain: str, fsid: str) -> None:
        """The image is served no more."""
        with self._lock:
            cookies = self._bound[domain].pop(fsid)
            if not self._bound[domain]:
                del self._bound[domain]
        self._touch(domain, cookies)

    def _forget_others(
        self, domain: str, fsid: str, bootstrap: Path, blobs: Mapping[str, str]
    ) -> None:
        held = open_cookies(domain)
        files = self._files(domain)
        if fsid in files and fsid not in held and not _is_part_of(files[fsid], bootstrap):
            log.info("%s in domain %s is another image now", fsid, domain)
            files[fsid].unlink(missing_ok=True)
        known = self._identities(domain)
        changed = [blob for blob, identity in blobs.items() if known.get(blob) != identity]
        for blob in changed:
            if blob in held:
                raise KernelRefused(
                    f"the kernel still holds blob {blob} of domain {domain} as another image "
                    "describes it",
                    hint=_HELD,
                )
            if blob in files:
                log.info("blob %s in domain %s is another one now", blob, domain)
                files[blob].unlink(missing_ok=True)
        if changed:
            kept = {b: i for b, i in known.items() if b in files or b in held}
            self._keep_identities(domain, {**kept, **blobs})

    def _volume(self, domain: str) -> Path:
        return self.directory / "cache" / f"{_VOLUME}{domain}"

    def _files(self, domain: str) -> dict[str, Path]:
        """What has a name in the cache directory: cookie -> file; nothing by way of links."""
        volume = self._volume(domain)
        with contextlib.suppress(FileNotFoundError):
            return {
                file.name[1:]: Path(file.path)
                for bucket in (() if volume.is_symlink() else os.scandir(volume))
                if bucket.is_dir(follow_symlinks=False)
                for file in os.scandir(bucket.path)
                if file.name[0] == "D" and file.is_file(follow_symlinks=False)
            }
        return {}

    def _touch(self, domain: str, cookies: Iterable[str]) -> None:
        """They are used now."""
        files = self._files(domain)
        for path in (files[cookie] for cookie in cookies if cookie in files):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)

    def _record(self, domain: str) -> Path:
        return self.directory / "identities" / f"{domain}.json"

    def _identities(self, domain: str) -> dict[str, str]:
        path = self._record(domain)
        try:
            known = json.loads(path.read_bytes()) if status_of_ours(path) else {}
        except ValueError:
            known = None
        if not isinstance(known, dict):
            log.warning("%s is damaged: what is cached in domain %s is not used", path, domain)
            return {}
        return known

    def _keep_identities(self, domain: str, identities: Mapping[str, str]) -> None:
        path = self._record(domain)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, json.dumps(identities).encode())
        except OSError as e:
            raise CacheDirError(
                f"cannot write {path}: {e.strerror}", hint="free some space in the root"
            ) from e

    # -- as an eviction source -------------------------------------------------------------------

    def _domains(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [
                name.removeprefix(_VOLUME)
                for name in os.listdir(self.directory / "cache")
                if name.startswith(_VOLUME)
            ]
        return []

    def blobs(self) -> list[Cached]:
        """What is bound or held by the kernel is in use."""
        unnamed = dict(self.written())
        held = _all_open_cookies() if self.device >= 0 else {}
        found = []
        for domain in self._domains():
            for cookie, path in self._files(domain).items():
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    in_use = cookie in held.get(domain, {}) or self._is_bound(domain, cookie)
                    size = status.st_blocks * 512
                    found.append(Cached(f"{domain}/{cookie}", size, status.st_mtime, in_use))
                    unnamed.pop(found[-1].name, None)
        return found + [Cached(name, size, time.time(), True) for name, size in unnamed.items()]

    @contextlib.contextmanager
    def reading(self, name: str, identity: str) -> Iterator[int | None]:
        """A descriptor of the file that has a name, for reading; None: it is not of ``identity``,
        or cannot be had.  What the kernel deletes or writes meanwhile does not matter to it."""
        domain, _, cookie = name.partition("/")
        path = fd = None
        with self._lock, contextlib.suppress(OSError, CacheDirError):
            if self._identities(domain).get(cookie) == identity:
                path = self._paths.pop(name, None) or self._files(domain).get(cookie)
            if path is not None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                self._paths[name] = path
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)

    def room_wanted(self) -> int:
        """For the kernel, which says when there are too few."""
        if self.device < 0:
            return 0
        poll = select.poll()
        poll.register(self.device, select.POLLOUT)
        if not any(what & select.POLLOUT for _, what in poll.poll(0)):
            return 0
        disk = os.statvfs(self.directory)
        return int(disk.f_blocks * disk.f_frsize * BRUN)

    def drop(self, names: Sequence[str]) -> list[str]:
        """Volumes that are empty then go too, with the record of their identities."""
        files = {domain: self._files(domain) for domain in self._domains()}
        wanted: dict[str, Path] = {}
        for name in names:
            domain, _, cookie = name.partition("/")
            path = files.get(domain, {}).get(cookie)
            if path is not None and not self._is_bound(domain, cookie):
                wanted[name] = path
        gone = self._delete(wanted)
        for name in gone:
            domain, _, cookie = name.partition("/")
            del files[domain][cookie]
            self._paths.pop(name, None)
        recorded = {path.stem for path in (self.directory / "identities").glob("*.json")}
        empty = {domain for domain in {*recorded, *files} if not files.get(domain)}
        self._drop_volumes(empty - self._bound.keys() - _all_open_cookies().keys())
        return gone

    def _is_bound(self, domain: str, cookie: str) -> bool:
        with self._lock:
            return any(cookie in cookies for cookies in self._bound.get(domain, {}).values())

    def _drop_volumes(self, domains: Iterable[str]) -> None:
        """One that is mounted from meanwhile is in use, and stays: so says the kernel."""
        self._delete({domain: self._volume(domain) for domain in domains})
        with self._lock:
            for domain in domains:
                if domain not in self._bound and not self._volume(domain).exists():
                    self._record(domain).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            for buried in os.scandir(self.directory / "graveyard"):
                _remove_tree(buried.path)

    def _delete(self, paths: Mapping[str, Path]) -> list[str]:
        """Which of them (file or volume, by name) are gone."""
        if not paths:
            return []
        with self._lock:
            if self.device < 0:
                for path in paths.values():
                    remove(path)
                return list(paths)
        outcomes = _cull(self.device, paths.values(), cull.verb(os.uname().release))
        by_name = dict(zip(paths, outcomes, strict=True))
        failed = [name for name, code in by_name.items() if code not in (*_GONE, *_STAYS)]
        if failed:
            why = os.strerror(by_name[failed[0]])
            log.error("%d are not culled, such as %s: %s", len(failed), failed[0], why)
        return [name for name, code in by_name.items() if code in _GONE]

    # -- power cuts ------------------------------------------------------------------------------

    def drop_unsynced(self) -> None:
        """After a power cut a block may be allocated and yet old: what was cached is not
        trusted.  ``USED_IN`` names the boot during which data were written, until they are
        synced."""
        marker, boot = self.directory / USED_IN, boot_id()
        if status_of_ours(marker) is not None and marker.read_bytes() != boot.encode():
            log.warning("the machine stopped while cachefiles was in use: cached data are dropped")
            for name in ("cache", "graveyard"):
                _remove_tree(self.directory / name)
        replace_file(marker, boot.encode())
        sync(self.directory)

    def mark_synced(self) -> None:
        """All cached data are on the disk: they outlive a reboot."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        (self.directory / USED_IN).unlink(missing_ok=True)


def is_held(domain: str, fsid: str, blobs: Iterable[str]) -> bool:
    """Does the kernel hold the bootstrap or any of the blobs?"""
    return not open_cookies(domain).keys().isdisjoint([fsid, *blobs])


def _remove_tree(path: Path | str) -> None:
    """As far as it can be deleted."""
    import shutil  # noqa: PLC0415 - start-up time, and 0.5 MiB

    shutil.rmtree(path, ignore_errors=True)


def _cull(device: int, paths: Iterable[Path], word: str) -> list[int]:
    """Have the kernel delete what it does not use: 0 or an errno for each path."""
    import subprocess  # noqa: PLC0415 - likewise

    names = [os.fsencode(path) for path in paths]
    printed = b""
    try:
        printed = subprocess.run(
            [sys.executable, "-I", "-S", cull.__file__, str(device), word],
            input=b"".join(name + b"\0" for name in names),
            stdout=subprocess.PIPE, pass_fds=[device], timeout=CULL_S, check=False,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired as e:
        log.error("culling does not end in %.0f s", CULL_S)
        printed = e.stdout or b""
    outcomes = [int(line) for line in printed.split()]
    return outcomes + [errno.EIO] * (len(names) - len(outcomes))


def _is_part_of(sparse: Path, whole: Path) -> bool:
    """Do all data of a sparse file stand in the other at the same place?"""
    with sparse.open("rb") as f, whole.open("rb") as g:
        size = whole.stat().st_size
        for off, end in data_ranges(f.fileno(), sparse.stat().st_size):
            length = min(end, size) - off
            if length <= 0 or os.pread(f.fileno(), length, off) != os.pread(
                g.fileno(), length, off
            ):
                return False
    return True
