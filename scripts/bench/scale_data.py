"""Rows of the benchmark of cost against size: images over one link, large blobs, a full cache."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
from pathlib import Path

import cold_kit as kit
from scale_kit import Node, Row

from nydus_fscache.api.client import Client
from nydus_fscache.cache.blob_files import CHUNK_MAP, DATA, IDENTITY, META
from nydus_fscache.cli.fscache.gc import PATIENCE_S
from rafs_v6.format.erofs import ChunkFlags, ChunkRecord, Compressor, Digester
from rafs_v6.writer import create
from rafs_v6.writer.base_image import load_base
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import BlobFile
from rafs_v6.writer.options import ChunkOptions, CreateOptions
from rafs_v6.writer.overlay import WhiteoutSpec
from rafs_v6.writer.tree import ROOT, Tree
from rafs_v6.writer.tree import Node as Inode

LATENCY_MS, MBPS = 20.0, 100.0
START_BYTES, REST_BYTES = 1 << 20, 3 << 20  # of an image: what its start reads, and does not read
FILE = 64 << 10
GIB = 1 << 30


def of_starts(work: Path, count: int) -> Row:
    """So many images, none seen before, are mounted and started at the same moment, all over one
    link.  ``limit_s``: a round trip for each, and what the starts read by the link's bandwidth."""
    served = work / "served"
    served.mkdir(exist_ok=True)
    boots = [_small_image(work, served, number) for number in range(count)]
    points = [work / f"s{number}" for number in range(count)]
    failed: list[BaseException] = []

    def start(number: int) -> None:
        try:
            node.mount_from(boots[number], kit.backend(host), points[number])
            files = range((START_BYTES + REST_BYTES) // FILE)
            for file in random.Random(number).sample(files, START_BYTES // FILE):
                (points[number] / f"f{file:02}").read_bytes()
        except BaseException as error:
            failed.append(error)

    with kit.server(served, LATENCY_MS, MBPS) as host, Node(work) as node:
        before = node.daemon.usage()[0]
        threads = [threading.Thread(target=start, args=(n,)) for n in range(count)]

        def all_at_once() -> None:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        seconds = kit.timed(all_at_once)
        cpu = node.daemon.usage()[0] - before
        fetched = sum(blob["fetched"] for blob in node.daemon.status()["blobs"])
    for point in points:
        point.rmdir()
    if failed:
        raise failed[0]
    return {
        "seconds": seconds, "cpu_s": cpu, "fetched_mb": fetched / 1e6,
        "limit_s": LATENCY_MS / 1000 + count * START_BYTES / (MBPS * 1e6),
    }  # fmt: skip


def _small_image(work: Path, served: Path, number: int) -> Path:
    boot = work / f"start-{number}"
    if boot.exists():
        return boot
    tree, dice = work / "tree", random.Random(number)
    tree.mkdir(exist_ok=True)
    for file in range((START_BYTES + REST_BYTES) // FILE):
        (tree / f"f{file:02}").write_bytes(dice.randbytes(FILE))
    subprocess.run(
        [*kit.BUILD, "create", "-B", str(boot), "-D", str(served), str(tree)],
        check=True, stdout=subprocess.DEVNULL, cwd=kit.REPO,
    )  # fmt: skip
    return boot


def of_gigabytes(work: Path, gigabytes: int) -> Row:
    """An image of one file, whose blob is a sparse stand-in: each chunk is stored raw, at a place
    of its own, and has its digest."""
    boot, blobs = _large_image(work, gigabytes)
    point = work / "m"
    with Node(work) as node:
        cost = node.cost(lambda: node.mount(boot, blobs, point))
        with (point / "large").open("rb") as file:
            file.seek(-FILE, os.SEEK_END)
            last_s = kit.timed(lambda: file.read(FILE))
        take_over = node.take_over(1)
    return {
        **cost, "read_last_s": last_s, "take_over_s": take_over,
        "bootstrap_mb": boot.stat().st_size / 1e6,
    }  # fmt: skip


def _large_image(work: Path, gigabytes: int) -> tuple[Path, Path]:
    """Only its last chunk has a digest that is right: zeros would be one chunk, found again."""
    boot, blobs = work / f"large-{gigabytes}", work / f"large-{gigabytes}.blobs"
    if boot.exists():
        return boot, blobs
    blobs.mkdir()
    count, size = gigabytes * GIB // kit.CHUNK, gigabytes * GIB
    options = CreateOptions(
        ChunkOptions(Compressor.NONE, Digester.SHA256, kit.CHUNK, 3, 1), boot, None, blobs
    )
    tree = Tree(kit.CHUNK)
    tree.add(ROOT, b"", Inode(0o40755))
    row = tree.add(ROOT, b"large", Inode(0o100644, size=size))
    tree.at[row] = 0
    chunks = BlobChunks(create.OWN_BLOB, tree.locations, flat_size=size)
    for number in range(count):
        at, is_last = number * kit.CHUNK, number + 1 == count
        digest = hashlib.sha256(bytes(kit.CHUNK) if is_last else b"%d" % number).digest()
        tree.refs.append(tree.locations.add(create.OWN_BLOB, number, at))
        chunks.add(
            ChunkRecord(digest, 0, ChunkFlags(0), kit.CHUNK, kit.CHUNK, at, at, at, number, 0)
        )
    base = load_base(None, None, create.defaults_of(options), WhiteoutSpec.NONE)
    out = BlobFile(create.blob_target(options))
    try:
        out.raw.seek(size)
        out.size = size
        create.finish(tree, base, chunks, options, out, ())
    finally:
        out.discard()
    return boot, blobs


def of_cached(work: Path, count: int) -> Row:
    """A cache of so many blobs that nothing uses: a daemon starts, is asked, and deletes them."""
    with Node(work) as node:
        node.daemon.stop(forget=False)
        _fill(node.daemon.root / "cache", count)
        ready = kit.timed(node.daemon.start)
        base = node.resident()
        status = min(kit.timed(node.daemon.status) for _ in range(3))
        client = Client(node.daemon.root, PATIENCE_S)
        metrics = min(kit.timed(lambda: client.text("/metrics")) for _ in range(3))
        before = node.daemon.usage()[0]
        answers: list[Row] = []

        def gc(*, dry_run: bool) -> None:
            request = {"to": 0, "dry_run": dry_run}
            answers.append(client.call("POST", "/v1/gc", request))

        look = kit.timed(lambda: gc(dry_run=True))
        gone = kit.timed(lambda: gc(dry_run=False))
        cpu = node.daemon.usage()[0] - before
        memory = node.resident() - base
        left = sum(n.endswith(DATA) for n in os.listdir(node.daemon.root / "cache"))
    if len(answers[1]["evicted"]) != count or left:
        raise SystemExit(f"scale: gc of {count} blobs left {left} files")
    return {
        "ready_s": ready, "status_s": status, "metrics_s": metrics, "gc_dry_s": look,
        "gc_s": gone, "cpu_s": cpu, "memory_mb": memory,
    }  # fmt: skip


def _fill(cache: Path, count: int) -> None:
    for number in range(count):
        name = hashlib.sha256(b"%d" % number).hexdigest()
        for suffix, data in (
            (DATA, bytes(4096)), (CHUNK_MAP, bytes(4097)), (META, b"x"), (IDENTITY, b"0" * 64)
        ):  # fmt: skip
            fd = os.open(cache / f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, data)
            os.close(fd)
