"""``bugreport``: what somebody who looks for a fault asks for first, in one archive, no secrets."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import pwd
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nydus_fscache
from nydus_fscache.cli.fscache.common import add_root, path, require_root
from nydus_fscache.cli.redact import Redactor
from nydus_fscache.errors import FscacheError, UsageError

NAME = "bugreport"
HELP = "collect logs and state in an archive, without secrets"
EXAMPLES = """\
examples:
  nydus-fscache bugreport
  nydus-fscache bugreport --output - | ssh support@example 'cat > report.tar.gz'

Credentials are taken out: those that are configured wherever they occur, and whatever looks like
one. Names of images, mountpoints, hosts and processes stay: look into it before you publish it.
"""
_TAIL = 4 << 20  # bytes of each log
_COMMAND_S = 20
_LOGS = ("daemon.log", "daemon.log.1", "events.jsonl", "events.jsonl.1", "fronts.log")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Write an archive with status, metrics, logs, events, configuration, what "
        "doctor says, and the state of the processes. It needs no running daemon, and changes "
        "nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=path,
        help="default: nydus-fscache-TIME.tar.gz in this directory; -: standard output",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the file's name as JSON")
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    require_root("bugreport")
    stem = f"nydus-fscache-{time.strftime('%Y%m%d-%H%M%S')}"
    output = args.output or Path(f"{stem}.tar.gz")
    to_stdout = str(output) == "-"
    if to_stdout and sys.stdout.isatty():
        raise UsageError("an archive is not for a terminal", hint="--output FILE, or a pipe")
    data = _archive(args.root, stem)
    if to_stdout:
        sys.stdout.buffer.write(data)
        return 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(output, flags, 0o600), "wb") as file:
        file.write(data)
    print(json.dumps({"file": str(output)}) if args.json else f"written: {output}")
    return 0


def _archive(root: Path, stem: str) -> bytes:
    redactor = _redactor(root)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, make in _parts(root, redactor):
            suffix = ""
            try:
                content = make()
            except (OSError, ValueError, FscacheError, subprocess.SubprocessError) as e:
                suffix, content = ".missing", redactor.text(f"{e}\n")
            if isinstance(content, str):
                data = content.encode("utf-8", "backslashreplace")
            else:
                data = json.dumps(content, indent=1).encode()
            member = tarfile.TarInfo(f"{stem}/{name}{suffix}")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _redactor(root: Path) -> Redactor:
    """Knows every credential that this node has for images."""
    from nydus_fscache.handover import state  # noqa: PLC0415 - start-up time
    from nydus_fscache.registry.credentials import auth_file  # noqa: PLC0415

    redactor = Redactor()
    docker = {k: v for k, v in os.environ.items() if k != "REGISTRY_AUTH_FILE"}
    of_root = {"HOME": pwd.getpwuid(0).pw_dir}  # sudo may have kept the caller's
    with contextlib.suppress(OSError, ValueError, RecursionError):
        redactor.learn(state.raw(root / "state.json"))
    for file in map(auth_file, (os.environ, docker, of_root)):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            redactor.learn(json.loads(file.read_bytes()))
    redactor.learn(dict(os.environ))
    return redactor


def _parts(root: Path, redactor: Redactor) -> Iterator[tuple[str, Callable[[], Any]]]:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands
    from nydus_fscache.handover import state  # noqa: PLC0415

    client = Client(root)

    def said(*words: str) -> Callable[[], str]:
        return lambda: redactor.text(_output(*words))

    yield "versions.json", _versions
    yield "status.json", lambda: redactor.document(client.call("GET", "/v1/status"))
    yield "prefetches.json", lambda: redactor.document(client.call("GET", "/v1/prefetches"))
    yield "metrics.txt", lambda: redactor.text(client.text("/metrics"))
    yield "state.json", lambda: redactor.document(state.raw(root / "state.json"))
    yield "doctor.json", lambda: redactor.document(_doctor(root))
    for log in (root / name for name in _LOGS):
        if log.exists():
            yield log.name, partial(_tail, log, redactor)
    yield "root.txt", lambda: _listing(root)
    yield "processes.txt", lambda: redactor.text(_processes(root))
    yield "mounts.txt", lambda: redactor.text(Path("/proc/self/mountinfo").read_text())
    yield "disk.txt", said("df", "-hT", str(root))
    yield "kernel.log", said("sh", "-c", "dmesg | grep -iE 'erofs|fscache|cachefiles|fanotify'")
    yield "journal.txt", said(
        "journalctl", "-u", "nydus-fscache", "-n", "5000", "--no-pager", "-o", "short-iso-precise"
    )


def _output(*words: str) -> str:
    done = subprocess.run(
        words, capture_output=True, timeout=_COMMAND_S, check=False, stdin=subprocess.DEVNULL
    )
    return (done.stdout + done.stderr)[-_TAIL:].decode("utf-8", "backslashreplace")


def _versions() -> dict[str, Any]:
    from importlib import metadata  # noqa: PLC0415

    release = Path("/etc/os-release")
    return {
        "nydus-fscache": nydus_fscache.__version__,
        "python": sys.version,
        "executable": sys.executable,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "system": release.read_text() if release.exists() else "",
        "packages": {d.name: d.version for d in metadata.distributions()},
    }


def _doctor(root: Path) -> dict[str, Any]:
    from nydus_fscache.transport.registry import examine  # noqa: PLC0415

    return examine(root).document()


def _tail(file: Path, redactor: Redactor) -> str:
    with file.open("rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - _TAIL))
        data = f.read()
    # not half a line, nor half a secret in it
    whole = data.partition(b"\n")[2] if len(data) >= _TAIL else data
    return redactor.text(whole.decode("utf-8", "replace"))


def _listing(root: Path) -> str:
    lines = []
    for file in sorted(root.rglob("*")):
        with contextlib.suppress(OSError):
            s = file.lstat()
            name = os.fsencode(file.relative_to(root)).decode("utf-8", "backslashreplace")
            lines.append(f"{s.st_mode:o} {s.st_uid} {s.st_size} {s.st_blocks * 512} {name}\n")
    return "".join(lines)


def _processes(root: Path) -> str:
    """Of keeper and service; no environment, which may hold credentials."""
    parts = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit():
                continue
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"nydus_fscache.daemon.main" not in words or os.fsencode(root) not in words:
                continue
            command = b" ".join(words).decode("utf-8", "replace")
            parts.append(f"== {entry.name}: {command}\n{len(list((entry / 'fd').iterdir()))} fds\n")
            parts += [(entry / name).read_text() for name in ("status", "limits", "cgroup", "io")]
            for task in sorted((entry / "task").iterdir()):
                comm, where = (task / "comm").read_text().strip(), (task / "wchan").read_text()
                parts.append(f"{task.name} {comm} {where}\n")
    return "".join(parts) or "none\n"
