"""The store's service: started by the keeper, never by hand.

usage: python -m nydus_fscache.runtimes.store.main --store DIR --root ROOT [--authfile FILE]
                                                   [--backend FILE] [--plain-http HOST]...

Below DIR: ``names`` is the tree for storage.conf, ``mnt`` has the images, ``state`` is ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from nydus_fscache import log
from nydus_fscache.api.client import Client
from nydus_fscache.config import nydusd as config
from nydus_fscache.errors import DaemonError, FscacheError, MountpointError, RootInUse
from nydus_fscache.files import try_lock
from nydus_fscache.handover.commands import keeper_argv
from nydus_fscache.handover.fail_pending import NAMES as CONNECTION
from nydus_fscache.handover.link import Handover, signal_pipe
from nydus_fscache.kernel import tree
from nydus_fscache.kernel.mount import umount
from nydus_fscache.kernel.mountinfo import find_mount
from nydus_fscache.registry.reference import canonical_host
from nydus_fscache.runtimes.store.catalogue import Catalogue, auth_environment
from nydus_fscache.runtimes.store.connection import Connection
from nydus_fscache.runtimes.store.names import Names
from nydus_fscache.runtimes.store.uses import Uses
from nydus_fscache.runtimes.store.views import Views

logger = logging.getLogger("store")

NAMES, MOUNTS, STATE = "names", "mnt", "state"
_GONE = b"\xff"  # in the pipe of signals: no signal has this number
_LOCK = "store.lock"  # its name at the keeper: who holds it is the store's server


def service_words(
    store: Path, root: Path, authfile: Path | None, backend: Path | None, plain_http: list[str]
) -> list[str]:
    """Behind the interpreter."""
    words = ["-m", "nydus_fscache.runtimes.store.main", "--store", str(store), "--root", str(root)]
    words += ["--authfile", str(authfile)] if authfile else []
    words += ["--backend", str(backend)] if backend else []
    return words + [word for host in plain_http for word in ("--plain-http", host)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--authfile", type=Path)
    parser.add_argument("--backend", type=Path)
    parser.add_argument("--plain-http", action="append", default=[])
    args = parser.parse_args()
    (args.store / STATE).mkdir(0o700, parents=True, exist_ok=True)
    listener = log.start(args.store / STATE, os.environ.get(log.LEVEL) or "INFO")
    try:
        return _run(args)
    except FscacheError as e:
        logger.error("%s (%s)", e, e.hint)
        return e.exit_code
    finally:
        listener.stop()


def _run(args: argparse.Namespace) -> int:
    handover = Handover.of_service("nydus-fscache store")
    ended, gone = signal_pipe()
    program, service = keeper_argv(
        service_words(args.store, args.root, args.authfile, args.backend, args.plain_http)
    )
    threading.Thread(
        target=handover.watch, args=(program, service), name="keeper", daemon=True
    ).start()
    store: Path = args.store
    _claim(store, handover)
    tree.share(store)
    _clear_dead(store / NAMES, handover)
    connection = Connection(handover)
    environ = auth_environment(args.authfile, os.environ)
    plain_http = frozenset(canonical_host(host) for host in args.plain_http)
    blobs = _blobs(args.backend) if args.backend else {}
    views = Views(store / MOUNTS, Client(args.root), environ, plain_http, blobs)
    uses = Uses(store / STATE / "uses.json", new_connection=connection.is_new)
    names = Names(Catalogue(environ, plain_http), views, uses)
    if connection.is_new:
        connection.mount(store / NAMES)
    connection.serve(names.handle, lambda: os.write(gone, _GONE))
    if connection.is_new:
        os.stat(store / NAMES)  # the kernel keeps the answer: names.py
    handover.ready()
    logger.info("%s names in %s", "serving" if connection.is_new else "serving again", store)
    if os.read(ended, 1) == _GONE:
        raise DaemonError(f"somebody unmounted {store / NAMES}", hint="the store mounts it again")
    umount(store / NAMES, lazy=True)
    views.drop_all()
    umount(store, lazy=True)  # a running container has an overlay of its own
    handover.bye()
    return 0


def _blobs(file: Path) -> dict[str, Any]:
    """The members of a mount request."""
    return config.parse(config.read(file), file).request()


def _claim(store: Path, handover: Handover) -> None:
    """Directories, and the lock; ``RootInUse`` when another server has it."""
    store.mkdir(0o755, exist_ok=True)
    if find_mount(store / NAMES) is None:  # a dead FUSE mount there cannot even be looked at
        (store / NAMES).mkdir(0o755, exist_ok=True)
    (store / MOUNTS).mkdir(0o711, exist_ok=True)
    (store / STATE).mkdir(0o700, exist_ok=True)
    lock = handover.take(_LOCK)
    if lock is None and (lock := try_lock(store / STATE / "lock")) is None:
        raise RootInUse(f"another store serves {store}", hint="one is enough")
    handover.keep(_LOCK, lock)


def _clear_dead(at: Path, handover: Handover) -> None:
    """What a store left whose keeper was killed too."""
    while CONNECTION not in handover.inherited and find_mount(at) is not None:
        try:
            umount(at, lazy=True)
        except MountpointError:
            return


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads may wait for requests of a tree that is still open somewhere
