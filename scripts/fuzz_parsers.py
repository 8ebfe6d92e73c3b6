#!/usr/bin/env python3
"""Mutation fuzzing of the parsers in Python; called by scripts/fuzz.

usage: fuzz_parsers.py [--runs N] [--seed N] TARGET

Targets: bootstrap (open, validate and walk), toc (a bootstrap inside of a blob),
layer (a bootstrap inside of a registry's layer), manifest, tar (the builder's
source).  The seeds are made here with the project's own builder.  An input may
be refused with the parser's own errors and with nothing else, in bounded time
and memory; what breaks this is written to tests/corpus/TARGET.  Prints the
number of executions.  Exit status: 0 all fine, 1 something broke.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import hashlib
import io
import json
import os
import random
import resource
import signal
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import rafs_v6
from nydus_fscache.errors import FscacheError
from nydus_fscache.registry import layer, manifest
from rafs_v6.cli import main as nydus_image
from rafs_v6.format.toc import find_bootstrap
from rafs_v6.reader.resolve import resolve
from rafs_v6.validate import is_sound, validate_tree
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.overlay import WhiteoutSpec
from rafs_v6.writer.sources.tar import TarSource

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "corpus"
PATIENCE_S = 10  # for one input, which takes a millisecond when all is well
MEMORY = 2 << 30
INTERESTING = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 64) - 1)


def _tree(directory: Path) -> None:
    """One of everything, small, so that an execution is quick and every byte matters."""
    (directory / "d" / "e").mkdir(parents=True)
    (directory / "empty").write_bytes(b"")
    (directory / "small").write_bytes(b"small")
    (directory / "d" / "big").write_bytes(os.urandom(4096) * 3 + b"tail")
    (directory / "d" / "link").symlink_to("../small")
    (directory / "d" / "fifo").touch()
    (directory / "d" / "e" / "hard").hardlink_to(directory / "small")
    for i in range(12):
        (directory / "d" / "e" / f"file-{i:02}").write_bytes(b"x" * i)
    os.setxattr(directory / "small", "user.k", b"value")


def _built(*options: str) -> tuple[bytes, bytes]:
    """(bootstrap, blob) of the tree."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "tree").mkdir()
        _tree(base / "tree")
        argv = ["create", "-t", "dir-rafs", *options]
        if "--blob-inline-meta" not in options:
            argv += ["--bootstrap", str(base / "boot")]
        with contextlib.redirect_stdout(io.StringIO()):
            code = nydus_image([*argv, "--blob", str(base / "blob"), str(base / "tree")])
        if code:
            raise SystemExit(f"fuzz_parsers: the seed cannot be built: {argv}")
        boot = (base / "boot").read_bytes() if (base / "boot").exists() else b""
        return boot, (base / "blob").read_bytes()


def _tar(content: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = {"mtime": "1700000000.5", "SCHILY.xattr.user.k": "v"}
            tar.addfile(info, io.BytesIO(data))
        for kind, name in ((tarfile.SYMTYPE, "s"), (tarfile.LNKTYPE, "h"), (tarfile.CHRTYPE, "c")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.devmajor = kind, "a", 1
            tar.addfile(info)
    return out.getvalue()


# -- targets: seeds, what runs, which errors are answers -------------------------------------------


def _run_bootstrap(data: bytes) -> None:
    bootstrap = rafs_v6.Bootstrap.from_bytes(data)
    for path in (b"/a/b/../c/", b"/etc/link", b"/\xff"):  # before anything is validated, too
        with contextlib.suppress(OSError, rafs_v6.ImageError):
            resolve(bootstrap, path)
    sound = is_sound(bootstrap)
    try:
        validate_tree(bootstrap)
    except rafs_v6.ImageError as error:
        if sound:
            raise AssertionError("sound, says C") from error
        raise
    if not sound:
        raise AssertionError("C found a fault that is none")
    for path, inode in bootstrap.walk():
        assert resolve(bootstrap, path, follow=False)[1] == inode, "found by halves"
        with contextlib.suppress(OSError):
            resolve(bootstrap, path)
        bootstrap.xattrs(inode)
        if inode.is_reg:
            for _chunk in bootstrap.chunks(inode):
                pass
    bootstrap.kernel_refusal("fanotify")


def _run_toc(data: bytes) -> None:
    def read_at(_blob_id: str, off: int, length: int) -> bytes:
        if off < 0 or off + length > len(data):
            raise rafs_v6.ImageError("outside")
        return data[off : off + length]

    find_bootstrap(read_at, "blob", len(data))


def _run_layer(data: bytes) -> None:
    layer.extract_bootstrap(data)


def _run_manifest(data: bytes) -> None:
    document = manifest.parse_document(data)
    if manifest.is_index(document, ""):
        manifest.choose_manifest(document, "amd64")
    manifest.nydus_image(document, "registry/name")


def _run_tar(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        TarSource(file, len(data), WhiteoutSpec.OCI).close()


def _manifest_seed() -> bytes:
    prefix = "containerd.io/snapshot/nydus-"
    digest = "sha256:" + hashlib.sha256(b"").hexdigest()
    entry = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest}
    blob = {**entry, "size": 1, "annotations": {f"{prefix}blob": "true"}}
    notes = {f"{prefix}bootstrap": "true", f"{prefix}fs-version": "6"}
    notes[f"{prefix}reference-blob-ids"] = '["a"]'
    return json.dumps({"layers": [blob, {**entry, "size": 2, "annotations": notes}]}).encode()


def _seeds(target: str) -> list[bytes]:
    if target == "bootstrap":
        variants = ([], ["--compressor", "none", "--chunk-size", "4096"], ["--digester", "sha256"])
        return [_built(*options)[0] for options in variants]
    if target == "toc":
        return [_built("--blob-inline-meta", "--features", "blob-toc")[1]]
    if target == "layer":
        plain = _tar({"image/other": b"y" * 600, "image/image.boot": b"x" * 1000})
        return [plain, gzip.compress(plain, mtime=0)]
    if target == "manifest":
        index = {"manifests": [{"digest": "sha256:" + "0" * 64, "size": 3, "platform": {}}]}
        return [_manifest_seed(), json.dumps(index).encode()]
    return [_tar({"a": b"1" * 700, "dir/b": b""})]


TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[type[Exception], ...]]] = {
    "bootstrap": (_run_bootstrap, (rafs_v6.ImageError,)),
    "toc": (_run_toc, (rafs_v6.ImageError,)),
    "layer": (_run_layer, (FscacheError,)),
    "manifest": (_run_manifest, (FscacheError,)),
    "tar": (_run_tar, (BuildError,)),
}


# -- mutations -------------------------------------------------------------------------------------


def _mutated(rng: random.Random, seed: bytes, busy: list[int]) -> bytes:
    """One to eight changes, mostly where the seed is not zero: padding teaches nothing."""
    data = bytearray(seed)
    for _ in range(1 << rng.randrange(4)):
        at = rng.choice(busy) if rng.random() < 0.9 else rng.randrange(len(data))
        at = min(at, len(data) - 1)
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind in (2, 3, 4):
            width = (2, 4, 8)[kind - 2]
            start = at // width * width
            value = rng.choice(INTERESTING) if rng.random() < 0.6 else rng.getrandbits(8 * width)
            field = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
            data[start : start + width] = field[: len(data) - start]
        elif kind == 5:
            other, length = rng.choice(busy), rng.choice((4, 8, 32, 64, 128))
            piece = data[other : other + length]
            data[at : at + len(piece)] = piece
        elif kind == 6 and rng.random() < 0.2:
            del data[at:]
            if not data:
                return b""
        else:
            width = rng.choice((1, 4, 8))
            value = int.from_bytes(data[at : at + width], "little") + rng.choice((-1, 1, 4096))
            data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data)


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"an input took more than {PATIENCE_S} s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("target", choices=TARGETS)
    args = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    run, answers = TARGETS[args.target]
    rng = random.Random(args.seed)
    known = sorted((CORPUS / args.target).glob("*"))
    seeds = [*_seeds(args.target), *(path.read_bytes() for path in known)]
    busy = [[i for i, byte in enumerate(seed) if byte] or [0] for seed in seeds]
    accepted = 0
    for count in range(args.runs + len(seeds)):
        which = count if count < len(seeds) else rng.randrange(len(seeds))
        data = seeds[which] if count < len(seeds) else _mutated(rng, seeds[which], busy[which])
        signal.alarm(PATIENCE_S)
        try:
            run(data)
            accepted += 1
        except answers:
            pass
        except Exception:
            traceback.print_exc()
            path = CORPUS / args.target / hashlib.sha1(data).hexdigest()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"{args.target}: {count + 1} executions, BROKEN by {path.name}")
            return 1
        finally:
            signal.alarm(0)
    print(f"{args.target}: {args.runs + len(seeds)} executions, ok ({accepted} accepted)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
