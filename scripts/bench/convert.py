#!/usr/bin/env python3
"""A conversion beside the sum of its parts, and starts from a registry with and without a trace.

    scripts/bench/convert.py [--mb N] [--rounds N] [--only convert|start]

A root file system of this machine's files (--mb, 400 by default) in five gzip layers lies in
Debian's docker-registry, which is asked directly and over 20 ms and 100 MB/s (``link.py``).  The
parts: ``crane pull`` into a tar, ``nydus-image create`` of each layer and ``merge``, a push of the
blobs.  Memory and disk are of a run of its own, since looking takes a processor's time, too.

crane comes from scripts/peers, and so does the original's conversion library with its builder
(``scripts/peers ndconvert nydus``), which is left out where it was not built.

The start is of a Python program that imports much, on an empty node, by ``nydus-fscache mount REF``
(the daemon's start included).  Needs root.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT), str(ROOT / "tests" / "kit"), str(ROOT / "scripts" / "bench"),
    str(ROOT / "tests" / "promises"),
]  # fmt: skip

from link import Link, link  # noqa: E402 - found by the path above
from oci_kit import Nydusify, push_image  # noqa: E402
from servers import Pusher, docker_registry  # noqa: E402
from test_rootfs import ROOTS, StoredLayer, changes, chosen, tar_of  # noqa: E402
from watched import watched  # noqa: E402

BIN = Path(sys.executable).parent
RTT_S, RATE = 0.020, 100e6
LIBRARIES = "usr/lib/x86_64-linux-gnu"
PROGRAM = (
    "import asyncio, json, ssl, sqlite3, http.client, xml.dom.minidom, decimal, ctypes, email,"
    "unittest.mock, multiprocessing, logging.config, tarfile, zipfile, csv, difflib, pydoc"
)
PYTHON = f"python3.{sys.version_info[1]}"


@cache
def peer(name: str) -> str:
    """Empty where it was not built."""
    where = subprocess.run(
        [ROOT / "scripts" / "peers", "--dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return f"{where}/{name}" if Path(where, name).is_file() else ""


def crane() -> str:
    program = peer("crane") or shutil.which("crane")
    if not program:
        sys.exit("no crane: scripts/peers crane")
    return program


def took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def run(*words: str | Path, **more: object) -> None:
    done = subprocess.run(words, capture_output=True, check=False, **more)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr.decode()}")


class Conversion:
    """``host`` is asked; each round pushes to repositories of its own."""

    def __init__(self, host: str, work: Path, layers: list[StoredLayer]) -> None:
        self.host, self.work, self.layers = host, work, layers
        self.number = 0

    def fresh(self, kind: str) -> str:
        self.number += 1
        return f"{self.host}/{kind}-{self.number}-{time.monotonic_ns()}:n"

    def ours(self, *more: str) -> Run:
        def argv(source: str, target: str, _: Path) -> list[str]:
            words = ("convert", "--source", source, "--target", target, *more)
            return Nydusify(self.work).argv(*words)

        return Run(self, "ours", argv)

    def original(self) -> Run | None:
        """Its conversion library, with its builder; None where they were not built."""
        program, builder = peer("ndconvert"), peer("nydus-image")

        def argv(source: str, target: str, directory: Path) -> list[str]:
            return [program, "-w", str(directory), "-b", builder, source, target]

        return Run(self, "original", argv) if program and builder else None

    def parts(self) -> tuple[float, float, float]:
        """Pull, build, push, one after the other."""
        directory = self.work / "parts"
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "blobs").mkdir(parents=True)
        source = f"{self.host}/root:v1"
        pull = took(lambda: run(crane(), "pull", "--insecure", source, directory / "image.tar"))
        run("tar", "-C", directory, "-xf", directory / "image.tar")
        files = sorted(directory.glob("*.tar.gz"))

        def build() -> None:
            made = []
            for number, file in enumerate(files):
                tar, blob = directory / f"{number}.tar", directory / "blobs" / f"{number}"
                with gzip.open(file) as packed, tar.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
                run(
                    BIN / "nydus-image", "create", "-t", "tar-rafs", "--blob-inline-meta",
                    "--features", "blob-toc", "--whiteout-spec", "none", "--blob", blob, tar,
                )  # fmt: skip
                made.append(blob)
            run(BIN / "nydus-image", "merge", "--bootstrap", directory / "boot", *made)

        built = took(build)
        name = self.fresh("parts").rpartition("/")[2].partition(":")[0]

        def push() -> None:
            with Pusher(self.host, name) as pusher:
                for blob in (directory / "blobs").iterdir():
                    pusher.blob(blob.read_bytes())

        pushed = took(push)
        shutil.rmtree(directory)
        return pull, built, pushed

    def copied(self) -> float:
        target = self.fresh("copy")
        return took(lambda: run(crane(), "copy", "--insecure", f"{self.host}/root:v1", target))


@dataclass(frozen=True)
class Run:
    """A conversion by one of the programs, which can be made many times."""

    conversion: Conversion
    kind: str
    argv: Callable[[str, str, Path], list[str]]  # source, target, work directory

    @contextmanager
    def _started(self) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """It must end well until the block is left."""
        directory = self.conversion.work / self.kind
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        source, target = f"{self.conversion.host}/root:v1", self.conversion.fresh(self.kind)
        process = subprocess.Popen(
            self.argv(source, target, directory), cwd=directory, stderr=subprocess.PIPE,
            env=Nydusify(directory).environment({"TMPDIR": str(directory)}),
        )  # fmt: skip
        yield process, directory
        said = process.communicate()[1]
        if process.returncode:
            sys.exit(said.decode())

    def seconds(self) -> float:
        began = time.monotonic()
        with self._started():
            pass
        return time.monotonic() - began

    def most(self) -> str:
        """Memory of all its processes, and files."""
        with self._started() as (process, directory), watched(process, directory) as most:
            process.wait()
        return f"memory {most['memory'] / 1e6:.0f} MB, disk {most['disk'] / 1e6:.1f} MB"


def conversions(title: str, conversion: Conversion, rounds: int) -> None:
    """In turns: what else the machine does meets all alike."""
    ours, theirs = conversion.ours(), conversion.original()
    runs, originals, parts, copies = [], [], [], []
    for _ in range(rounds):
        runs.append(ours.seconds())
        parts.append(conversion.parts())
        copies.append(conversion.copied())
        if theirs:
            originals.append(theirs.seconds())
    took_s = statistics.median(runs)
    pull, build, push = (statistics.median(one[i] for one in parts) for i in range(3))
    slowest = max(pull, build, push)
    print(f"{title}: convert {took_s:.2f} s, {took_s / slowest:.2f} of the slowest part, "
          f"{ours.most()}")  # fmt: skip
    print(f"{title}: parts {pull:.2f} + {build:.2f} + {push:.2f} = {pull + build + push:.2f} s; "
          f"crane copy {statistics.median(copies):.2f} s")  # fmt: skip
    if theirs:
        library = statistics.median(originals)
        print(f"{title}: the original's library {library:.2f} s, {theirs.most()}")
    zran = conversion.ours("--oci-ref")
    print(f"{title}: convert --oci-ref {zran.seconds():.2f} s, {zran.most()}", flush=True)


def program_image(push: Pusher) -> None:
    """Python and what it loads."""
    paths = [f"usr/bin/{PYTHON}", *chosen("usr/lib64", 10_000_000)]
    paths += [*chosen(f"usr/lib/{PYTHON}", 250_000_000), LIBRARIES]
    shared = sorted(Path("/", LIBRARIES).glob("*.so*"))
    paths += [str(file)[1:] for file in shared if file.is_file() and file.stat().st_size < 8e6]
    push_image(push, "py", [StoredLayer(tar_of(["bin", "lib", "lib64", "usr", *paths]))])


@contextmanager
def node(
    work: Path, reference: str, *words: str
) -> Iterator[Callable[[], tuple[float, float]]]:
    """An empty one: its mount, and a call that runs the program.

    The call gives the seconds until the mount was there, and until the program was done.
    """
    root, point = Path(tempfile.mkdtemp(dir=work)), work / "mnt"
    point.mkdir(exist_ok=True)
    daemon = (BIN / "nydus-fscache",)
    began = time.monotonic()
    run(*daemon, "mount", reference, point, "--root", root, *words)
    mounted = time.monotonic() - began

    def start() -> tuple[float, float]:
        run("chroot", point, f"/usr/bin/{PYTHON}", "-S", "-E", "-c", PROGRAM)
        return mounted, time.monotonic() - began

    try:
        yield start
    finally:
        run(*daemon, "umount", point, "--root", root)
        for _ in range(100):  # another mount name space may have copied the mount
            stop = [*daemon, "stop", "--root", root]
            if subprocess.run(stop, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.3)
        shutil.rmtree(root, ignore_errors=True)


def starts(host: str, over: Link, work: Path, rounds: int) -> None:
    far = f"127.0.0.1:{over.port}"
    nydusify = Nydusify(work)
    nydusify.run("convert", "--source", f"{host}/app:py", "--target", f"{host}/app:n")
    for title, words in (("without a trace", ("--prefetch", "none")), ("image's default", ())):
        measured(title, far, over, work, rounds, words)
    with node(work, f"{host}/app:n", "--prefetch", "none") as start:
        start()
        time.sleep(12)  # it is recorded for some seconds
        (root,) = [p for p in work.iterdir() if (p / "images").is_dir()]
        nydusify.run("trace", "push", "--target", f"{host}/app:n", "--root", str(root))
    measured("with the trace", far, over, work, rounds, ())


def measured(
    title: str, far: str, over: Link, work: Path, rounds: int, words: tuple[str, ...]
) -> None:
    mounts, times, moved = [], [], []
    for _ in range(rounds):
        before = over.moved[1]
        with node(work, f"{far}/app:n", *words) as start:
            mounted, whole = start()
            mounts.append(mounted)
            times.append(whole)
            moved.append(over.moved[1] - before)
    print(
        f"mount and start, {title}: {statistics.median(times):.2f} s "
        f"({min(times):.2f} to {max(times):.2f}), mount {statistics.median(mounts):.2f} s, "
        f"{statistics.median(moved) / 1e6:.1f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--mb", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("convert", "start"))
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root")
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="nydusify-bench-") as directory:
        work = Path(directory)
        with (
            docker_registry(work) as host,
            link(int(host.rpartition(":")[2]), RTT_S, RATE) as over,
        ):
            if args.only != "start":
                paths = [chosen(top, args.mb * 1_000_000 // len(ROOTS)) for top in ROOTS]
                layers = [StoredLayer(tar_of(["usr", *one])) for one in paths[:3]]
                layers.append(StoredLayer(tar_of(paths[3])))
                with tempfile.TemporaryDirectory(dir=work) as changed:
                    layers.append(StoredLayer(changes(Path(changed), paths)))
                plain = sum(len(one.tar) for one in layers) / 1e6
                stored = sum(len(one.stored()) for one in layers) / 1e6
                print(f"{plain:.0f} MB of tars, {stored:.0f} MB stored")
                with Pusher(host, "root") as push:
                    push_image(push, "v1", layers)
                conversions("direct", Conversion(host, work, layers), args.rounds)
                far = f"127.0.0.1:{over.port}"
                conversions("20 ms, 100 MB/s", Conversion(far, work, layers), args.rounds)
            if args.only != "convert":
                with Pusher(host, "app") as push:
                    program_image(push)
                starts(host, over, work, max(args.rounds, 3))


if __name__ == "__main__":
    main()
