"""Parts of the cold-start benchmark: trees, images, a throttled server, a measured daemon."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-m", "nydus_fscache"]
BUILD = [sys.executable, "-m", "rafs_v6.cli"]
CHUNK = 1 << 20
PORT = 18931  # the same each time: the image stays the same image
STARTUP = (
    "import argparse, asyncio, decimal, email.message, http.client, json, logging, sqlite3, ssl, "
    "tomllib, unittest, urllib.request, xml.etree.ElementTree, zipfile; print(ssl.OPENSSL_VERSION)"
)
_JAVA = "/usr/lib/jvm/java-17-openjdk-amd64"
STARTS = {
    "python": ["/usr/bin/python3.11", "-B", "-c", f"{STARTUP}; import requests, yaml"],
    "node": ["/usr/bin/node", "-e", "require('http'); require('crypto'); require('zlib')"],
    "java": ["/usr/bin/env", f"LD_LIBRARY_PATH={_JAVA}/lib", f"{_JAVA}/bin/java", "-version"],
    "nginx": ["/usr/sbin/nginx", "-t"],
    "postgres": ["/usr/lib/postgresql/15/bin/postgres", "--describe-config"],
    "go": ["/usr/lib/go-1.19/bin/go", "env"],
    "perl": ["/usr/bin/perl", "-e", "use POSIX; use Encode; use File::Temp; use IO::Socket;"],
    "git": ["/usr/bin/git", "--version"],
    "ruby": ["/usr/bin/ruby3.1", "-e", "require 'json'; require 'net/http'; require 'set'"],
    "php": ["/usr/bin/php8.2", "-r", "echo json_encode(get_loaded_extensions());"],
    "redis": ["/usr/bin/redis-server", "--version"],
    "shell": ["/bin/bash", "-c", "ls / >/dev/null; echo x | grep x | sed s/x/y/"],
}
_FILL = ("usr/lib/x86_64-linux-gnu", "usr/share", "usr/bin")


def make_tree(root: Path, megabytes: int) -> None:
    """Python and its libraries, then parts of this machine's /usr in the order of their names."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("usr/bin", "usr/lib", "usr/lib64", "tmp", "dev"):
        (root / name).mkdir(parents=True)
    for link in ("bin", "lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    shutil.copy2("/usr/bin/python3.11", root / "usr/bin")
    shutil.copytree(
        "/usr/lib/python3.11", root / "usr/lib/python3.11", symlinks=True,
        ignore=shutil.ignore_patterns("dist-packages", "config-*"),
    )  # fmt: skip
    libraries = root / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir()
    modules = [str(p) for p in Path("/usr/lib/python3.11/lib-dynload").glob("*.so")]
    listed = subprocess.run(
        ["ldd", "/usr/bin/python3.11", *modules], capture_output=True, text=True, check=False
    ).stdout
    for word in set(listed.split()):
        if word.startswith("/lib"):
            shutil.copy2(word, root / "usr" / Path(word).relative_to("/"))
    left = (megabytes << 20) - sum(
        p.lstat().st_size for p in root.rglob("*") if p.is_file() and not p.is_symlink()
    )
    for top in _FILL:
        share = left // 2 if top != _FILL[-1] else left
        for directory, names, files in os.walk(f"/{top}"):
            names.sort()
            for file in sorted(files):
                source = Path(directory, file)
                target = root / source.relative_to("/")
                if source.is_symlink() or not source.is_file() or os.path.lexists(target):
                    continue
                size = source.stat().st_size
                if size > min(share, 40 << 20):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
                share -= size
                left -= size


@dataclass(frozen=True)
class Built:
    bootstrap: Path
    blobs: Path
    tar: Path
    stored: int


def build(tree: Path, out: Path, chunk_size: int = CHUNK) -> Built:
    shutil.rmtree(out, ignore_errors=True)
    blobs = out / "served"
    blobs.mkdir(parents=True)
    subprocess.run(
        [*BUILD, "create", "-t", "dir-rafs", "-B", str(out / "boot"), "-D", str(blobs),
         "--chunk-size", hex(chunk_size), str(tree)],
        check=True, stdout=subprocess.DEVNULL, cwd=REPO,
    )  # fmt: skip
    stored = sum(p.stat().st_size for p in blobs.iterdir())
    tar = blobs / "image.tar.zst"
    subprocess.run(["sh", "-c", f"tar -C {tree} -c . | zstd -q -3 -T2 -o {tar}"], check=True)
    return Built(out / "boot", blobs, tar, stored)


@contextlib.contextmanager
def server(
    directory: Path, latency_ms: float, mbps: float, stats: Path | None = None
) -> Iterator[str]:
    """HOST:PORT of a server with that latency a request and that bandwidth in all.

    ``stats``: gets the numbers of requests and bytes at the end."""
    process = subprocess.Popen(
        [sys.executable, str(REPO / "tests/kit/rangeserver.py"), str(directory),
         "--port", str(PORT), "--latency-ms", str(latency_ms), "--mbps", str(mbps),
         *(("--stats", str(stats)) if stats else ())],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def backend(host: str) -> dict[str, Any]:
    return {"type": "registry", "registry": {"scheme": "http", "host": host, "repo": "bench"}}


class Daemon:
    """The daemon of a root of its own; ``empty`` forgets the cache but not the traces."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mountpoint = root.parent / "mnt"
        self.mountpoint.mkdir(parents=True, exist_ok=True)

    def command(self, *words: str) -> str:
        return subprocess.run(
            [*CLI, words[0], "--root", str(self.root), *words[1:]],
            check=True, stdout=subprocess.PIPE, text=True, cwd=REPO,
        ).stdout  # fmt: skip

    def start(self) -> None:
        from nydus_fscache.api.client import Client  # noqa: PLC0415 - after REPO is on the path

        self.client = Client(self.root)
        self.client.start_daemon()

    def mount(self, built: Built, config: dict[str, Any], prefetch: str) -> None:
        self.client.call(
            "POST", "/v1/mounts",
            {"bootstrap": str(built.bootstrap), "backend": config, "prefetch": prefetch,
             "mountpoint": str(self.mountpoint), "transport": "auto"},
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.call("GET", "/v1/status")
        return found

    def usage(self) -> tuple[float, int]:
        """(CPU seconds, peak bytes) of the service."""
        pid = self.status()["pid"]
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK"), int(peak.split()[1]) << 10

    def needed(self, built: Built) -> int:
        """Stored bytes of the units that the last run wanted."""
        import rafs_v6  # noqa: PLC0415
        from rafs_v6.reader.blobs import directory_blobs  # noqa: PLC0415

        digest = hashlib.sha256(built.bootstrap.read_bytes()).hexdigest()
        trace = self.client.call("GET", "/v1/traces", digest=digest)["accesses"]
        bootstrap = rafs_v6.Bootstrap.from_file(built.bootstrap)
        read_at = directory_blobs(built.blobs).read_at
        sizes: dict[str, Any] = {}
        for info in bootstrap.blobs:
            size = (built.blobs / info.blob_id).stat().st_size
            chunks = rafs_v6.ChunkMap.load(
                info, read_at, bootstrap, blob_size=lambda _, size=size: size
            )
            sizes[info.blob_id] = chunks.blob.units, chunks
        return sum(sizes[a["blob"]][0][a["unit"]].clen for a in trace)

    def stop(self, *, forget: bool = True) -> None:
        with contextlib.suppress(Exception):
            if self.client.runs():
                self.command("stop")
        if forget:
            shutil.rmtree(self.root / "cache", ignore_errors=True)

    def forget_image(self) -> None:
        """Its trace, and the metadata of its blobs."""
        for path in (self.root / "images").glob("*.trace"):
            path.unlink()
        for path in (self.root / "images").glob("*.meta"):
            shutil.rmtree(path)


def mount_local(image: Path, blobs: list[Path], target: Path) -> None:
    """The kernel's EROFS over local files, without a loop device between."""
    from nydus_fscache.kernel.mount import mount_erofs  # noqa: PLC0415 - only with the product

    fds = [os.open(p, os.O_RDONLY) for p in (image, *blobs)]
    try:
        mount_erofs(fds[0], fds[1:], target)
    finally:
        for fd in fds:
            os.close(fd)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def walk(root: Path) -> None:
    subprocess.run(["sh", "-c", f"tar -C {root} -c . | cat > /dev/null"], check=True)


def startup(root: Path) -> None:
    subprocess.run(
        ["chroot", str(root), "/usr/bin/python3.11", "-B", "-c", STARTUP],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def start(root: Path, argv: list[str]) -> None:
    """Its exit code is its own affair: what it reads is what counts."""
    subprocess.run(
        ["chroot", str(root), *argv],
        check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def spin() -> None:
    """Work that takes as long each time on a quiet machine."""
    hashlib.sha256(bytes(32 << 20)).digest()


def timed(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def save(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1))
