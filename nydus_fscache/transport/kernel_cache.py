"""What the kernel has cached for us over cachefiles on-demand, and what it holds open.

The kernel never asks for what its file has.  So a file that was filled for another
description of the same name must go before an image is served under that name:

    DIRECTORY/cache/Ierofs,DOMAIN/@HH/DCOOKIE   the kernel's; COOKIE is the fsid or a blob id
    DIRECTORY/identities/DOMAIN.json            which description a blob's data were verified
                                                against: {blob id: identity}
    DIRECTORY/used-in                           the boot during which data were written

Source: reference kernel-transports 1.7; fscache/cookie.c and volume.c (Linux 6.1) for /proc.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from nydus_fscache import kernel
from nydus_fscache.errors import CacheDirError, KernelRefused, UsageError
from nydus_fscache.files import data_ranges, replace_file, status_of_ours, sync

log = logging.getLogger("cachefiles")

PROC = Path("/proc/fs/fscache")
USED_IN = "used-in"
_NAME = re.compile(r"[A-Za-z0-9._:@+=-]{1,128}")
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
    volumes: set[str] = set()
    found: dict[str, bool] = {}
    with contextlib.suppress(FileNotFoundError):  # nothing was ever mounted
        for line in (PROC / "volumes").read_text(errors="replace").splitlines():
            words = line.split(None, 6)
            if len(words) == 7 and words[6] == f"erofs,{domain}":
                volumes.add(words[0])
        for line in (PROC / "cookies").read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) > 7 and words[1] in volumes:
                with contextlib.suppress(ValueError):
                    name = bytes.fromhex(words[7].rstrip(",")).decode("utf-8", "replace")
                    found[name] = words[5] == "A"
    return found


class KernelCache:
    """The directory that the kernel caches in.  Not thread-safe."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(
        self, domain: str, fsid: str, bootstrap: Path, blobs: Mapping[str, str]
    ) -> None:
        """Before an image is served: nothing that was filled for another one stays.

        ``blobs``: {blob id: identity}.  Raises ``KernelRefused`` when the kernel holds open
        what would have to go.
        """
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

    def _files(self, domain: str) -> dict[str, Path]:
        """What has a name in the cache directory: cookie -> file."""
        volume = self.directory / "cache" / f"Ierofs,{domain}"
        if not volume.is_dir():
            return {}
        return {
            file.name[1:]: Path(file.path)
            for bucket in os.scandir(volume)
            if bucket.is_dir(follow_symlinks=False)
            for file in os.scandir(bucket.path)
            if file.name[0] == "D" and file.is_file(follow_symlinks=False)
        }

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

    # -- power cuts ------------------------------------------------------------------------------

    def drop_unsynced(self) -> None:
        """After a power cut a block may be allocated and yet old: what was cached is not
        trusted.  ``USED_IN`` names the boot during which data were written, until they are
        synced."""
        marker, boot = self.directory / USED_IN, kernel.boot_id()
        if status_of_ours(marker) is not None and marker.read_bytes() != boot.encode():
            log.warning("the machine stopped while cachefiles was in use: cached data are dropped")
            for name in ("cache", "graveyard"):
                shutil.rmtree(self.directory / name, ignore_errors=True)
        replace_file(marker, boot.encode())
        sync(self.directory)

    def mark_synced(self) -> None:
        """All cached data are on the disk: they outlive a reboot."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kernel.syncfs(fd)
        finally:
            os.close(fd)
        (self.directory / USED_IN).unlink(missing_ok=True)


def is_held(domain: str, fsid: str, blobs: Iterable[str]) -> bool:
    """Does the kernel hold the bootstrap or any of the blobs?"""
    return not open_cookies(domain).keys().isdisjoint([fsid, *blobs])


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
