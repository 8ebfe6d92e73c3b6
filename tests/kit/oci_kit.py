"""Small OCI and docker images for tests of nydusify, and nydusify itself as a user runs it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from servers import Pusher

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
PREFIX = "containerd.io/snapshot/"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))
PEERS = (
    os.environ.get("NYDUS_PEERS", ""), str(Path.home() / ".cache" / "nydus-fscache" / "peers")
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A member of a layer's tar.  ``data`` makes it a file, ``target`` a link."""

    name: str
    data: bytes | None = None
    target: str = ""
    kind: bytes = tarfile.DIRTYPE
    mode: int = 0o644
    uid: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] | None = None


def layer_tar(entries: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type = tarfile.REGTYPE if entry.data is not None else entry.kind
            info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.uid
            info.mtime, info.linkname = 1_700_000_000, entry.target
            info.devmajor, info.devminor = entry.device
            info.pax_headers = {
                f"SCHILY.xattr.{k}": v.decode() for k, v in (entry.xattrs or {}).items()
            }
            if entry.data is not None:
                info.size = len(entry.data)
            tar.addfile(info, io.BytesIO(entry.data or b""))
    return out.getvalue()


def noise(size: int, seed: int) -> bytes:
    """The same bytes for the same seed, hard to compress."""
    block = b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(4096))
    return (block * (size // len(block) + 1))[:size]


BASE = (
    Entry("etc", mode=0o755), Entry("etc/passwd", b"root:x:0:0\n"),
    Entry("etc/old", b"to be hidden"), Entry("bin", mode=0o755),
    Entry("bin/app", noise(3_000_000, 1), mode=0o4755), Entry("dir", mode=0o700),
    Entry("dir/gone", b"gone"), Entry("dir/link", target="../etc/passwd", kind=tarfile.SYMTYPE),
    Entry("hard", target="bin/app", kind=tarfile.LNKTYPE),
    Entry("null", kind=tarfile.CHRTYPE, device=(1, 3)), Entry("pipe", kind=tarfile.FIFOTYPE),
    Entry("attr", b"x", xattrs={"user.b": b"2", "user.a": b"1", "user.c": b"3"}),
)  # fmt: skip
UPPER = (
    Entry("etc/.wh.old", b""), Entry("dir", mode=0o755), Entry("dir/.wh..wh..opq", b""),
    Entry("dir/new", b"new" * 1000, uid=1000), Entry("etc/passwd", b"root:x:0:0\nme:x:1:1\n"),
)  # fmt: skip
EXPECTED = {
    "/etc/passwd": b"root:x:0:0\nme:x:1:1\n", "/dir/new": b"new" * 1000,
    "/hard": noise(3_000_000, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    tar: bytes
    media_type: str = OCI_GZIP

    def stored(self) -> bytes:
        if self.media_type.endswith("zstd"):
            import zstandard

            return zstandard.compress(self.tar)
        packed = self.media_type.endswith("gzip")
        return gzip.compress(self.tar, 5, mtime=0) if packed else self.tar


def push_image(
    push: Pusher, tag: str, layers: Sequence[Layer], *, docker: bool = False,
    architecture: str = "amd64", change: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Push it; returns its descriptor.  ``change``: members of the manifest that are replaced."""
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Env": ["A=<1>&2"], "Cmd": ["/bin/app"], "Labels": {"b": "2", "a": "1"}},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(one.tar).hexdigest()}" for one in layers],
        },
        "history": [{"created_by": f"layer {i}"} for i in range(len(layers))],
    }
    body = json.dumps(config).encode()
    described = []
    for one in layers:
        data = one.stored()
        kind = DOCKER_GZIP if docker else one.media_type
        described.append(
            {"mediaType": kind, "digest": f"sha256:{push.blob(data)}", "size": len(data)}
        )
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": {
            "mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
            "digest": f"sha256:{push.blob(body)}",
            "size": len(body),
        },
        "layers": described,
        **(change or {}),
    }
    digest = push.manifest(tag, manifest)
    return {
        "mediaType": manifest["mediaType"],
        "digest": digest,
        "size": len(json.dumps(manifest).encode()),
    }


def two_layers() -> list[Layer]:
    return [Layer(layer_tar(BASE)), Layer(layer_tar(UPPER))]


def get(host: str, repo: str, name: str) -> requests.Response:
    """A manifest, as any client sees it."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"http://{host}/v2/{repo}/manifests/{name}", headers={"Accept": ACCEPT})


def get_blob(host: str, repo: str, digest: str) -> bytes:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"http://{host}/v2/{repo}/blobs/{digest}")
        answer.raise_for_status()
        return answer.content


def erofs_mounts() -> set[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return {line.split()[1] for line in lines if " erofs " in line}


def tags(host: str, repo: str) -> list[str]:
    with requests.Session() as session:
        session.trust_env = False
        found = session.get(f"http://{host}/v2/{repo}/tags/list").json().get("tags")
        return sorted(found or [])


@dataclass(frozen=True)
class Nydusify:
    """Runs it in ``directory``, with an environment of its own."""

    directory: Path

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TMPDIR")}
        root = str(Path(__file__).resolve().parents[2])
        return {
            **kept, "HOME": str(self.directory), "PYTHONPATH": root,
            "DOCKER_CONFIG": str(self.directory / "docker"), **(more or {}),
        }  # fmt: skip

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "nydus_fscache.cli.nydusify.main", *words]

    def run(
        self, *words: str, code: int = 0, env: Mapping[str, str] | None = None, text: bytes = b""
    ) -> str:
        """Standard error; ``code`` is what it must end with."""
        done = subprocess.run(
            self.argv(*words), cwd=self.directory, env=self.environment(env), input=text,
            capture_output=True, timeout=600, check=False,
        )  # fmt: skip
        said = done.stderr.decode()
        assert done.returncode == code, f"{done.returncode}\n{done.stdout.decode()}\n{said}"
        return said

    @contextlib.contextmanager
    def mounting(self, target: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """``mount``, as soon as it shows the image at ``mnt``; killed when the block is left."""
        log = self.directory / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.argv("mount", "--target", target, "--mount-path", "mnt", *words),
                cwd=self.directory, env=self.environment(), stderr=out,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while b"Please send signal" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield process
        except BaseException:
            process.send_signal(signal.SIGTERM)  # so that it ends its daemon
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(90)
            raise
        finally:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def mounted(self, target: str, *words: str) -> Iterator[Path]:
        """Where ``mount`` shows it; it must end with 0."""
        with self.mounting(target, *words) as process:
            try:
                yield self.directory / "mnt"
            finally:
                process.send_signal(signal.SIGTERM)
                code = process.wait(90)
        assert code == 0

    def left(self) -> list[str]:
        """What lies in the directory."""
        return sorted(p.name for p in self.directory.iterdir())


def peer(name: str) -> str:
    """A program of others, or a loud skip."""
    for directory in filter(None, PEERS):
        if (Path(directory) / name).is_file():
            return str(Path(directory) / name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: scripts/peers, or $NYDUS_PEERS, has it")
    return found


def real_builder() -> str:
    """The original's nydus-image, or a loud skip."""
    named = os.environ.get("NYDUS_REAL_IMAGE", "")
    if named:
        return named
    for directory in filter(None, PEERS):
        if (Path(directory) / "nydus-image").is_file():
            return str(Path(directory) / "nydus-image")
    pytest.skip("no nydus-image of the original: set NYDUS_REAL_IMAGE")
