"""``nydusd``: the drop-in.  The command line of the original, served by in-kernel EROFS mounts.

This process is a front: it answers the API that nydus-snapshotter speaks and asks the daemon of
the node for mounts.  Data never pass through it, and mounts outlive it.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd import documents
from nydus_fscache.errors import FscacheError, UsageError

ROOT = "NYDUS_FSCACHE_ROOT"
_DEFAULT_ROOT = "/var/lib/nydus-fscache"
_LEVELS = {"trace": "DEBUG", "warn": "WARNING"}
_POLL_S = 0.2
_EXAMPLES = """\
examples:
  nydusd fuse --mountpoint /run/nydus/mnt --apisock /run/nydus/api.sock
  nydusd fuse --mountpoint /mnt/app --bootstrap image.boot --config nydusd.json
  nydusd singleton --fscache /var/lib/nydus/cache --apisock /run/nydus/api.sock
  nydusd --mountpoint /mnt/app --bootstrap image.boot --localfs-dir blobs/

Images are mounted by the kernel's EROFS; the daemon of the node serves them. Its state and cache
are in $NYDUS_FSCACHE_ROOT (default: /var/lib/nydus-fscache). See docs/nydusd.md.
"""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(documents.VERSION_TEXT)
        parser.exit()


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-A", "--apisock", metavar="PATH", type=Path, help="socket of the API")
    parser.add_argument("-C", "--config", metavar="FILE", type=Path, help="configuration")
    parser.add_argument("--id", metavar="ID", help="of this instance; needs --supervisor")
    parser.add_argument("--supervisor", metavar="PATH", type=Path, help="keeps state for failover")
    parser.add_argument("--upgrade", action="store_true", help="start and wait for takeover")
    parser.add_argument(
        "-l", "--log-level", default="info", choices=("trace", "debug", "info", "warn", "error"),
        metavar="LEVEL", help="trace, debug, info (default), warn, error",
    )  # fmt: skip
    parser.add_argument("-L", "--log-file", metavar="PATH", type=Path, help="default: stderr")
    parser.add_argument("--log-rotation-size", metavar="MB", type=int, default=0,
                        help="0: never (default)")  # fmt: skip
    parser.add_argument("--rlimit-nofile", metavar="N", type=int, default=1_000_000,
                        help="0: leave it")  # fmt: skip


def _fuse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-M", "--mountpoint", metavar="DIR", type=Path, help="where images appear")
    parser.add_argument("-B", "--bootstrap", metavar="FILE", type=Path, help="mount this image")
    parser.add_argument("-D", "--localfs-dir", metavar="DIR", type=Path, help="its blobs")
    parser.add_argument("--prefetch-files", metavar="FILE", type=Path, help="paths, one a line")
    parser.add_argument("-m", "--virtual-mountpoint", metavar="PATH", default="/")
    parser.add_argument("-s", "--shared-dir", metavar="DIR", type=Path, help="not supported")
    parser.add_argument("--writable", action="store_true", help="not supported")
    for names in (
        ("--failover-policy",), ("--fuse-threads", "--thread-num"), ("--backend-source",),
        ("--dedup-db",),
    ):  # fmt: skip
        parser.add_argument(*names, metavar="X", help="accepted; the kernel needs none")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nydusd",
        description="Container images, mounted lazily by the kernel: a drop-in for nydusd.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("-V", "--version", nargs=0, action=_Version, help="print it and exit")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    fuse = commands.add_parser("fuse", help="mount images (the default)", allow_abbrev=False)
    _common(fuse)
    _fuse(fuse)
    singleton = commands.add_parser(
        "singleton", help="serve images over cachefiles by fsid", allow_abbrev=False
    )
    _common(singleton)
    singleton.add_argument("-F", "--fscache", metavar="DIR", type=Path, help="cachefiles' root")
    for name in ("--fscache-tag", "--fscache-threads"):
        singleton.add_argument(name, metavar="X", help="accepted; nothing depends on it")
    virtiofs = commands.add_parser("virtiofs", help="refused, with the way that works")
    virtiofs.add_argument("words", nargs=argparse.REMAINDER)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["virtiofs"]:
        return _fail(
            UsageError(
                "virtiofs is not supported",
                hint="export the image: nydus-image export --block --verity, and attach the disk; "
                "or share a mount of nydus-fscache with plain overlayfs (docs/nydusd.md)",
            )
        )
    if words and words[0].startswith("-") and words[0] not in ("-V", "--version", "-h", "--help"):
        words.insert(0, "fuse")
    args, unknown = parser().parse_known_args(words)
    if args.command is None:
        parser().print_help()
        return UsageError.exit_code
    try:
        return _run(args, unknown)
    except FscacheError as e:
        return _fail(e)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        return _fail(FscacheError(f"{where}{e.strerror}"))


def _fail(error: FscacheError) -> int:
    print(f"nydusd: error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _run(args: argparse.Namespace, unknown: list[str]) -> int:
    from nydus_fscache.api.nydusd.engine import NodeDaemon  # noqa: PLC0415 - quick --version
    from nydus_fscache.api.nydusd.front import Front, Identity, State  # noqa: PLC0415
    from nydus_fscache.api.nydusd.fscache import BoundImages  # noqa: PLC0415
    from nydus_fscache.api.nydusd.fuse import FuseMounts  # noqa: PLC0415
    from nydus_fscache.api.nydusd.server import Listener  # noqa: PLC0415
    from nydus_fscache.handover.front_state import FrontSupervisor  # noqa: PLC0415

    is_fuse = args.command == "fuse"
    (_check_fuse if is_fuse else _check_singleton)(args)
    _log(args)
    log = logging.getLogger("nydusd")
    if unknown:
        log.warning("options that are not known here: %s", " ".join(unknown))
    _raise_nofile(args.rlimit_nofile)
    root = Path(os.environ.get(ROOT) or _DEFAULT_ROOT)
    daemon = NodeDaemon(root)
    errors = documents.ErrorRing()
    waits = args.upgrade or (args.supervisor is not None and _crashed(args.apisock))
    mounts = FuseMounts(args.mountpoint.resolve(), daemon, errors) if is_fuse else None
    images = None if is_fuse else BoundImages(daemon, errors)
    service = mounts or images
    assert service is not None
    state = State.INIT if waits else State.RUNNING
    identity = Identity(args.id, args.supervisor)
    front = Front(identity, service, daemon, FrontSupervisor(), errors, state)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    own = False
    if mounts is not None and args.bootstrap is not None and not waits:
        daemon.start()
        mounts.mount(_own_instance(args))
        own = True
    if images is not None and not waits:
        daemon.start()  # the first answer is RUNNING: all must be there
        for entry in _own_blobs(args):
            images.bind(entry)
    listener = None
    if args.apisock is not None:
        listener = Listener(args.apisock)
        listener.serve(front.answer)
    log.info("%s, the node's daemon is in %s", front.state.value, root)
    threading.Thread(target=_prepare, args=(daemon, log), name="prepare", daemon=True).start()
    while not (ended.wait(_POLL_S) or front.exit_asked.is_set()):
        pass
    # With a supervisor this may be a restart: a successor takes the mounts over, and knows by
    # the socket's file that it is one.  Without, nobody would unmount them.
    succeeded = args.supervisor is not None and ended.is_set()
    if ended.is_set() and (own or not succeeded):
        service.end()
    if listener is not None:
        listener.close(leave_file=succeeded)
    if ended.is_set():
        daemon.stop_if_idle()
    return 0


def _own_blobs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The elements of ``blobs`` in --config, as the original takes them: none if there is none."""
    import json  # noqa: PLC0415 - only here

    if args.config is None:
        return []
    try:
        document = json.loads(args.config.read_text())
    except ValueError as e:
        raise UsageError(f"{args.config} is not JSON: {e}", hint='{"blobs": [...]}') from e
    found = document.get("blobs") if isinstance(document, dict) else None
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def _prepare(daemon: Any, log: logging.Logger) -> None:
    """What the first mount would wait for."""
    try:
        daemon.start()
    except FscacheError as e:
        log.error("the daemon of the node does not start: %s (%s)", e, e.hint)


def _check_fuse(args: argparse.Namespace) -> None:
    if args.mountpoint is None:
        raise UsageError("fuse needs --mountpoint", hint="nydusd fuse --help has examples")
    if not args.mountpoint.is_dir():
        raise UsageError(f"{args.mountpoint} is not a directory", hint=f"mkdir {args.mountpoint}")
    if args.shared_dir is not None or args.writable:
        raise UsageError(
            "--shared-dir and --writable are not supported", hint="mount an overlay on top"
        )
    if args.bootstrap is not None and args.config is None and args.localfs_dir is None:
        raise UsageError("--bootstrap needs --config or --localfs-dir", hint="name the blobs")
    if args.config is not None and args.localfs_dir is not None:
        raise UsageError("--config and --localfs-dir exclude each other", hint="name one of them")
    if args.id is not None and args.supervisor is None:
        raise UsageError("--id needs --supervisor", hint="name both or none")
    if args.upgrade and args.supervisor is None:
        raise UsageError("--upgrade needs --supervisor", hint="the state comes from there")


def _check_singleton(args: argparse.Namespace) -> None:
    from nydus_fscache.api.client import CACHEFILES  # noqa: PLC0415 - only here

    if args.fscache is None:
        raise UsageError("singleton needs --fscache", hint="nydusd singleton --help has examples")
    if not args.fscache.is_dir():
        raise UsageError(f"{args.fscache} is not a directory", hint=f"mkdir -p {args.fscache}")
    if (args.id is None) != (args.supervisor is None) or (args.upgrade and not args.supervisor):
        raise UsageError("--id, --supervisor and --upgrade go together", hint="name both or none")
    os.environ[CACHEFILES] = str(args.fscache.resolve())


def _own_instance(args: argparse.Namespace) -> Any:
    import json  # noqa: PLC0415 - only here

    from nydus_fscache.api.nydusd.fuse import Instance  # noqa: PLC0415
    from nydus_fscache.config import nydusd as configuration  # noqa: PLC0415

    if args.localfs_dir is not None:
        directory = str(args.localfs_dir.resolve())
        text = json.dumps({"type": "localfs", "localfs": {"dir": directory}})
    else:
        text = configuration.read(args.config)
        if auth := os.environ.get("IMAGE_PULL_AUTH"):
            text = configuration.with_registry_auth(text, auth, args.config)
    files = []
    if args.prefetch_files is not None:
        files = [line for line in args.prefetch_files.read_text().splitlines() if line.strip()]
    return Instance("/", str(args.bootstrap.resolve()), text, files)


def _crashed(apisock: Path | None) -> bool:
    """Did an earlier process leave its socket, with nobody behind it?"""
    if apisock is None or not apisock.exists():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(apisock))
        except OSError:
            return True
    return False


def _log(args: argparse.Namespace) -> None:
    from logging.handlers import RotatingFileHandler  # noqa: PLC0415 - only here

    handler: logging.Handler = logging.StreamHandler()
    if args.log_file is not None:
        path = args.log_file if args.log_file.suffix else args.log_file.with_suffix(".log")
        size = max(0, args.log_rotation_size) << 20
        handler = RotatingFileHandler(path, maxBytes=size, backupCount=10 if size else 0)
    handler.setFormatter(
        logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S %z")
    )
    logging.basicConfig(level=_LEVELS.get(args.log_level, args.log_level.upper()),
                        handlers=[handler])  # fmt: skip


def _raise_nofile(wanted: int) -> None:
    """As far as it is allowed: the front needs few descriptors, so less is not an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


if __name__ == "__main__":
    sys.exit(main())
