"""Copies of mounts, and what can be changed of a copy before it is attached: its ids, its flags.

Guarantees: a tree appears at its place whole or not at all, and no descriptor or process is left
behind.  Constants as in linux/mount.h; ids are mapped since Linux 5.12, of EROFS since 5.19.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from contextlib import ExitStack
from pathlib import Path

from nydus_fscache.errors import KernelRefused
from nydus_fscache.kernel.mount import MOUNT_ATTR_RDONLY, attach
from nydus_fscache.kernel.syscalls import AT_FDCWD, refuse, syscall

OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 0x1, os.O_CLOEXEC
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
MOUNT_ATTR_IDMAP = 0x100000
_SYS_OPEN_TREE, _SYS_MOUNT_SETATTR = 428, 442  # the same on every architecture
_MOUNT_ATTR = struct.Struct("=QQQQ")  # set, cleared, propagation, user namespace

# Enters a user namespace of its own and waits; a thread of ours could not.
_ENTER = (
    "import ctypes,sys\n"
    "c=ctypes.CDLL(None,use_errno=True)\n"
    "print(ctypes.get_errno() if c.unshare(0x10000000) else 0,flush=True)\n"
    "sys.stdin.read()"
)

IdMap = tuple[int, int, int]  # ids in the image from, as seen from, how many


def clone(path: Path, *, whole: bool = False) -> int:
    """A detached copy (descriptor) of the mount, or bind of the directory, at ``path``;
    ``whole``: with the mounts below it."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if whole else 0)
    tree = syscall(_SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)
    if tree < 0:
        refuse(f"copying the mount at {path}", ctypes.get_errno())
    return tree


def bind(source: Path, target: Path, *, read_only: bool = False, whole: bool = False) -> None:
    """``source`` also at ``target``."""
    tree = clone(source, whole=whole)
    try:
        if read_only:
            _set(tree, MOUNT_ATTR_RDONLY, 0, "making a mount read-only")
        attach(tree, target)
    finally:
        os.close(tree)


def bind_with_ids(source: Path, target: Path, ids: IdMap) -> None:
    """``source`` also at ``target``, where owner ``ids[0] + n`` of a file is ``ids[1] + n``."""
    with ExitStack() as ends:
        bind_with_namespace(source, target, _user_namespace(ids, ends))


def bind_with_namespace(source: Path, target: Path, namespace: int) -> None:
    """``source`` also at ``target``, with owners as a user namespace (descriptor) maps them."""
    tree = clone(source)
    try:
        _set(tree, MOUNT_ATTR_IDMAP, namespace, f"mapping the ids of {source}")
        attach(tree, target)
    finally:
        os.close(tree)


def _set(tree: int, attributes: int, namespace: int, what: str) -> None:
    given = _MOUNT_ATTR.pack(attributes, 0, 0, namespace)
    if syscall(_SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, given, len(given)) < 0:
        refuse(what, ctypes.get_errno(), hint="ids of EROFS mounts are mapped from Linux 5.19 on")


def _user_namespace(ids: IdMap, ends: ExitStack) -> int:
    """The descriptor of a user namespace with this map of users and groups."""
    import subprocess  # noqa: PLC0415 - only here

    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ENTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    ends.callback(holder.communicate)  # closes its stdin, which ends it
    if holder.stdout is None:
        raise KernelRefused("no user namespace: no answer")
    code = int(holder.stdout.readline() or 1)
    if code:
        raise KernelRefused(
            f"no user namespace: {os.strerror(code)}",
            hint="sysctl user.max_user_namespaces must not be 0",
        )
    text = " ".join(map(str, ids))
    try:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text(text)
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise KernelRefused(f"the id map {text}: {e.strerror}") from e
    ends.callback(os.close, namespace)
    return namespace
