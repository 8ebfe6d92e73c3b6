"""What of a node's set-up would break ``nydusd`` under nydus-snapshotter; nothing is changed.

Looks at processes, mounts and limits, and at the snapshotter's configuration where there is one.
Sources: docs/nydusd.md, "On a node".
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd.documents import COMMIT
from nydus_fscache.errors import FscacheError
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel.probe import Finding

RUNTIMES = ("containerd", "dockerd", "containerd-nydus-grpc")
SNAPSHOTTER = "containerd-nydus-grpc"
CONFIGS = ("/etc/nydus/config.toml", "/etc/nydus-snapshotter/config.toml")
DEFAULT_ROOT = "/var/lib/containerd/io.containerd.snapshotter.v1.nydus"
_LEAST_FILES = 4096
_LONGEST_ROOT = 70
_VERSION_S = 10.0


def examine(proc: Path = Path("/proc")) -> list[Finding]:
    """Everything, for ``doctor``."""
    found = at_start(proc)
    config = _config_file(proc)
    if config is not None:
        found += _snapshotter(config)
    return found


def at_start(proc: Path = Path("/proc")) -> list[Finding]:
    """What takes no time; for the log of each start."""
    return [_namespace(proc), _open_files()]


def _namespace(proc: Path) -> Finding:
    """A mount that the runtime does not see is an empty root file system to its containers."""
    name = "mount namespace"
    ours = os.readlink(proc / "self/ns/mnt")
    others = {
        command: namespace for pid, command in _processes(proc) if command in RUNTIMES
        if (namespace := _namespace_of(proc, pid)) and namespace != ours
    }  # fmt: skip
    if not others:
        return Finding(name, True, "that of the container runtime, as far as one runs")
    who = ", ".join(sorted(others))
    if _shared_mounts(proc):
        return Finding(name, True, f"not that of {who}; mounts are shared with others")
    return Finding(
        name, False, f"not that of {who}, and no mount here is shared: images do not appear there",
        "start it in the host's mount namespace, or mount the snapshotter's root with "
        "Bidirectional propagation (mount --make-rshared)",
    )  # fmt: skip


def _namespace_of(proc: Path, pid: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(proc / pid / "ns/mnt")
    return ""


def _processes(proc: Path) -> Iterator[tuple[str, str]]:
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                yield entry.name, os.path.basename(os.fsdecode(words[0]))


def _shared_mounts(proc: Path) -> bool:
    lines = (proc / "self/mountinfo").read_text(errors="replace").splitlines()
    return any(" shared:" in line.partition(" - ")[0] for line in lines)


def _open_files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _LEAST_FILES:
        return Finding("open files", True, f"{hard} may be open")
    return Finding(
        "open files", False, f"only {hard} may be open: a descriptor for each blob of each image",
        "LimitNOFILE=1048576 in the unit of the snapshotter",
    )  # fmt: skip


# -- the snapshotter's configuration -------------------------------------------------------------


def _config_file(proc: Path) -> Path | None:
    for pid, command in _processes(proc):
        if command == SNAPSHOTTER:
            with contextlib.suppress(OSError):
                words = os.fsdecode((proc / pid / "cmdline").read_bytes()).split("\0")
                for word, following in pairwise(words):
                    if word.startswith("--config="):
                        return Path(word.removeprefix("--config="))
                    if word == "--config":
                        return Path(following)
    return next((Path(name) for name in CONFIGS if os.path.exists(name)), None)


def _snapshotter(file: Path) -> list[Finding]:
    import tomllib  # noqa: PLC0415 - where there is one

    name = "nydus-snapshotter"
    try:
        settings = tomllib.loads(file.read_text())
    except (OSError, ValueError) as e:
        return [Finding(name, False, f"{file}: {e}", "mend it, or name the right one")]
    daemon = _table(settings, "daemon")
    root = Path(str(settings.get("root") or DEFAULT_ROOT))
    return [_program(daemon), _driver(daemon), _template(daemon), *_root(root)]


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _program(daemon: Mapping[str, Any]) -> Finding:
    import subprocess  # noqa: PLC0415 - with the snapshotter

    name, path = "nydusd_path", str(daemon.get("nydusd_path") or "/usr/local/bin/nydusd")
    remedy = "name this project's nydusd in [daemon] nydusd_path"
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, timeout=_VERSION_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as e:
        return Finding(name, False, f"{path} cannot be run: {e}", remedy)
    if COMMIT not in said:
        return Finding(name, False, f"{path} is not this version of this project's", remedy)
    return Finding(name, True, f"{path} is ours")


def _driver(daemon: Mapping[str, Any]) -> Finding:
    driver = daemon.get("fs_driver") or "fusedev"
    if driver in ("fusedev", "fscache"):
        return Finding("fs_driver", True, str(driver))
    return Finding(
        "fs_driver", False, f"{driver}: the snapshotter starts no nydusd for it", "use fusedev"
    )


def _template(daemon: Mapping[str, Any]) -> Finding:
    """The document that each image's configuration is made of, which names the registry."""
    from nydus_fscache.config import nydusd as configuration  # noqa: PLC0415 - with the snapshotter

    name = "nydusd_config"
    file = Path(str(daemon.get("nydusd_config") or "/etc/nydus/nydusd-config.json"))
    try:
        document = configuration.document_of(configuration.read(file), file)
    except FscacheError as e:
        return Finding(name, False, str(e), e.hint or "mend it")
    backend = _table(_table(document, "device"), "backend") or _table(document, "config")
    kind = backend.get("type") or backend.get("backend_type")
    if kind is None:
        return Finding(name, False, f"{file} names no backend", "device.backend.type: registry")
    return Finding(name, True, f"{file}, {kind}")


def _root(root: Path) -> Iterator[Finding]:
    if len(str(root)) > _LONGEST_ROOT:
        yield Finding(
            "snapshotter's root", False, f"{root} is longer than {_LONGEST_ROOT} bytes",
            "choose a shorter one: names of sockets are made of it",
        )  # fmt: skip
    point = root / "mnt"
    if mountinfo.find_mount(point) is not None:
        yield Finding(
            "mountpoint", False, f"{point} is a mount of its own: the snapshotter takes it for "
            "that of a daemon that died, and unmounts it", f"umount {point}",
        )  # fmt: skip
    else:
        yield Finding("snapshotter's root", True, str(root))
