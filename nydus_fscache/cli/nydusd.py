"""``nydusd``: the drop-in.  The command line of the original, served by in-kernel EROFS mounts.

It opens a front in the host of fronts (``api/nydusd/host.py``), which answers the API that
nydus-snapshotter speaks and asks the daemon of the node for mounts.  Data pass through neither,
and mounts outlive both.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd import documents
from nydus_fscache.errors import FscacheError, UsageError
from nydus_fscache.files import DEFAULT_ROOT, ROOT_VARIABLE, node_root

_LEVELS = {"trace": "DEBUG", "warn": "WARNING"}
_PATIENCE_S = 60.0
_CONTROL_FD = 3
# Says `end` on SIGTERM, and ends when the other end of the connection does.
_HOLD = (
    'trap "t=1; echo end >&3" TERM INT; '
    'while :; do t=; read -r _ <&3 || [ "$t" ] || exit 0; done'
)
_EXAMPLES = f"""\
examples:
  nydusd fuse --mountpoint /run/nydus/mnt --apisock /run/nydus/api.sock
  nydusd fuse --mountpoint /mnt/app --bootstrap image.boot --config nydusd.json
  nydusd singleton --fscache /var/lib/nydus/cache --apisock /run/nydus/api.sock
  nydusd --mountpoint /mnt/app --bootstrap image.boot --localfs-dir blobs/

Images are mounted by the kernel's EROFS; the daemon of the node serves them. Its state and cache
are in ${ROOT_VARIABLE} (default: {DEFAULT_ROOT}). See docs/nydusd.md.
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
    parser.add_argument("-m", "--virtual-mountpoint", metavar="PATH", default="/",
                        help="of this image, below --mountpoint")  # fmt: skip
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
    from nydus_fscache.api.nydusd.host_link import Wanted, open_front  # noqa: PLC0415 - quick --version

    is_fuse = args.command == "fuse"
    (_check_fuse if is_fuse else _check_singleton)(args)
    if unknown:
        print(f"nydusd: not known here: {' '.join(unknown)}", file=sys.stderr)
    waits = args.upgrade or (args.supervisor is not None and _crashed(args.apisock))
    log_file = args.log_file and (
        args.log_file if args.log_file.suffix else args.log_file.with_suffix(".log")
    )
    wanted = Wanted(
        kind=args.command,
        mountpoint=str(args.mountpoint.resolve()) if is_fuse else "",
        apisock=_absolute(args.apisock),
        instance=args.id or "",
        supervisor=_absolute(args.supervisor),
        waits=waits,
        cachefiles="" if is_fuse else str(args.fscache.resolve()),
        own=_own_instance(args) if is_fuse and args.bootstrap is not None else None,
        blobs=[] if is_fuse else _own_blobs(args),
        log_file=_absolute(log_file),
        log_level=_LEVELS.get(args.log_level, args.log_level.upper()),
        log_rotation_mib=max(0, args.log_rotation_size),
    )
    connection = open_front(node_root(), wanted, _PATIENCE_S)
    os.dup2(connection.fileno(), _CONTROL_FD)
    os.set_inheritable(_CONTROL_FD, True)  # it may have been that number before
    # From here on this process only waits, in a program that costs a third of a MiB.
    os.execv("/bin/sh", ["nydusd", "-c", _HOLD, *sys.argv])


def _absolute(path: Path | None) -> str:
    return "" if path is None else os.path.abspath(path)


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
    if args.prefetch_files is not None and args.bootstrap is None:
        raise UsageError("--prefetch-files needs --bootstrap", hint="name the image")
    if args.config is not None and args.localfs_dir is not None:
        raise UsageError("--config and --localfs-dir exclude each other", hint="name one of them")
    if args.id is not None and args.supervisor is None:
        raise UsageError("--id needs --supervisor", hint="name both or none")
    if args.upgrade and args.supervisor is None:
        raise UsageError("--upgrade needs --supervisor", hint="the state comes from there")


def _check_singleton(args: argparse.Namespace) -> None:
    if args.fscache is None:
        raise UsageError("singleton needs --fscache", hint="nydusd singleton --help has examples")
    if not args.fscache.is_dir():
        raise UsageError(f"{args.fscache} is not a directory", hint=f"mkdir -p {args.fscache}")
    if (args.id is None) != (args.supervisor is None) or (args.upgrade and not args.supervisor):
        raise UsageError("--id, --supervisor and --upgrade go together", hint="name both or none")


def _own_instance(args: argparse.Namespace) -> dict[str, Any]:
    import json  # noqa: PLC0415 - only here

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
        lines = args.prefetch_files.read_text().splitlines()
        files = [line.strip() for line in lines if line.strip()]
        if wrong := next((line for line in files if not line.startswith("/")), None):
            raise UsageError(f"{args.prefetch_files}: {wrong!r} is not absolute", hint="/...")
    source = str(args.bootstrap.resolve())
    name = args.virtual_mountpoint
    return {"name": name, "source": source, "config": text, "prefetch_files": files}


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


if __name__ == "__main__":
    sys.exit(main())
