"""The service process: started by the keeper, never by hand.

usage: python -m nydus_fscache.daemon.main --root DIR [--log-level LEVEL]
       python -m nydus_fscache.daemon.main --root DIR --ask JOURNAL    (upgrade.py)
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import threading
from pathlib import Path

import nydus_fscache
from nydus_fscache import log
from nydus_fscache.api import metrics_port, native
from nydus_fscache.api import server as api
from nydus_fscache.config import settings
from nydus_fscache.daemon import privilege
from nydus_fscache.daemon.service import Service
from nydus_fscache.errors import CacheDirError, DaemonError, FscacheError, UsageError
from nydus_fscache.handover import keeper, upgrade
from nydus_fscache.handover.commands import daemon_argv
from nydus_fscache.handover.link import Handover, signal_pipe

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main() -> int:
    words = iter(sys.argv[1:])
    given = dict(zip(words, words, strict=True))  # not argparse: 0.5 MiB, and who calls knows how
    root = Path(given["--root"])
    if "--ask" in given:
        print(json.dumps(upgrade.answer(root, int(given["--ask"]))))
        return 0
    os.umask(0o077)
    wrong = _read_settings()
    privilege.reduce()  # before the first thread, which the log starts
    level = given.get("--log-level") or os.environ.get(log.LEVEL) or "INFO"
    listener = log.start(root, level)
    if wrong is not None:
        logging.getLogger("daemon").error("%s (%s): as it was before", wrong, wrong.hint)
    try:
        return _run(root)
    except FscacheError as e:
        return _failed(root, e)
    except OSError as e:
        if e.errno not in _DISK:
            raise
        hint = "free some space, or choose another --root"
        return _failed(root, CacheDirError(f"cannot write to {root}: {e}", hint=hint))
    finally:
        listener.stop()


def _read_settings() -> UsageError | None:
    """A file that became wrong must not keep a service from being started again."""
    try:
        settings.apply()
    except UsageError as e:
        return e
    return None


def _failed(root: Path, error: FscacheError) -> int:
    """Told to who waits for the start."""
    logging.getLogger("daemon").error("%s (%s)", error, error.hint)
    kind, code = type(error).__name__, error.exit_code
    document = {"kind": kind, "message": str(error), "hint": error.hint, "exit_code": code}
    with contextlib.suppress(OSError):
        (root / "start-error.json").write_text(json.dumps({"error": document}))
    return code


def _run(root: Path) -> int:
    handover = Handover.of_service("nydus-fscache serve")
    # from the start: all that the keeper held is here alone when it dies now
    threading.Thread(
        target=handover.watch, args=daemon_argv(root), name="keeper", daemon=True
    ).start()
    socket_was_kept = "api" in handover.inherited
    service = Service(root, handover)
    _stop_on_signals(service)  # before anybody can know that it runs
    calls: socket.socket = api.listen(root / "api.sock", handover)
    end_calls = api.serve(native.routes(service), calls)
    metrics_end = threading.Event()
    if metrics := os.environ.get(metrics_port.VARIABLE):
        threading.Thread(
            target=metrics_port.keep_listening,
            args=(metrics, native.metrics_routes(service), metrics_end),
            name="metrics",
            daemon=True,
        ).start()
    handover.ready()
    threading.Thread(target=service.prepare, name="prepare", daemon=True).start()
    logging.getLogger("daemon").info(
        "%s in %s, pid %d", "successor" if socket_was_kept else "started", root, os.getpid()
    )
    log.event(
        "started",
        version=nydus_fscache.__version__,
        pid=os.getpid(),
        starts=keeper.starts(),
        successor=socket_was_kept,
    )
    if error := os.environ.get(keeper.UPGRADE_ERROR):
        log.event("upgrade-failed", error=error)
    service.wait_until_stopped()
    metrics_end.set()
    end_calls()
    if service.successor is not None:
        service.make_way()
        return 0
    if not service.close():
        return DaemonError.exit_code  # not meant: the keeper starts another
    # the last step: who was not answered finds no daemon, and may start one
    log.event("stopped")
    if service.ends_in_place:
        (root / "api.sock").unlink(missing_ok=True)
    calls.close()
    return 0


def _stop_on_signals(service: Service) -> None:
    ours, _ = signal_pipe()

    def obey() -> None:
        while os.read(ours, 1):
            logger.info("asked to stop by a signal")
            try:
                service.stop({})
            except FscacheError as e:
                logger.error("asked to stop, but: %s (%s)", e, e.hint)

    logger = logging.getLogger("daemon")
    threading.Thread(target=obey, name="signals", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
