"""What nerdctl, BuildKit, acceld and Harbor call: the one Go library that they share.

Its command lines are recorded from the library itself, by a program in the place of
``nydus-image``; what they rely on is then tried by hand: FIFOs on both sides, patterns on
standard input, features found in the help, the exit code of ``merge``.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from containerd import peer
from oci_kit import Layer, push_image
from servers import Pusher, docker_registry

import rafs_v6

BIN = Path(sys.executable).parent
NYDUS_IMAGE = str(BIN / "nydus-image")
LIMIT_S = 60
LAYER = [
    "create", "--log-level", "warn", "--prefetch-policy", "fs", "--blob", "FIFO",
    "--whiteout-spec", "none", "--fs-version", "6", "--type", "tar-rafs", "--blob-inline-meta",
    "--features", "blob-toc", "FIFO",
]  # fmt: skip
ZRAN = [
    "create", "--log-level", "warn", "--type", "targz-ref", "--blob-inline-meta", "--features",
    "blob-toc", "--blob", "FIFO", "FIFO",
]  # fmt: skip
RECORDER = """\
#!/usr/bin/python3
import json, os, stat, subprocess, sys
words = sys.argv[1:]
kinds = []
for word in words:
    try:
        kinds.append('FIFO' if stat.S_ISFIFO(os.stat(word).st_mode) else 'FILE')
    except OSError:
        kinds.append('NEW' if word.startswith('/') else word)
kinds = [k if w.startswith('/') else w for k, w in zip(kinds, words)]
with open({log!r}, 'a') as f:
    f.write(json.dumps(kinds) + '\\n')
os.execv({program!r}, [{program!r}, *words])
"""


def tar_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


FIRST = tar_of(etc__one=b"one", etc__two=b"2" * 100_000)
SECOND = tar_of(**{"etc__.wh.one": b"", "etc__three": b"three"})


def push_source(host: str) -> str:
    with Pusher(host, "app") as push:
        push_image(push, "1", [Layer(FIRST), Layer(SECOND)])
    return f"{host}/app:1"


@pytest.mark.parametrize("zran", [False, True], ids=["rafs", "zran"])
def test_command_lines_of_the_library(tmp_path: Path, zran: bool) -> None:
    library, log, recorder = peer("ndconvert"), tmp_path / "log", tmp_path / "nydus-image"
    recorder.write_text(RECORDER.format(log=str(log), program=NYDUS_IMAGE))
    recorder.chmod(0o755)
    (tmp_path / "work").mkdir()
    with docker_registry(tmp_path) as host:
        source = push_source(host)
        subprocess.run(
            [library, "-w", tmp_path / "work", "-b", recorder, *(["-zran"] if zran else []),
             source, f"{host}/app:n"],
            check=True, capture_output=True, timeout=LIMIT_S,
        )  # fmt: skip
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    layers = [call for call in calls if call[0] == "create" and call != ["create", "-h"]]
    assert layers == [ZRAN if zran else LAYER] * 2
    assert calls.count(["create", "-h"]) == len(calls) - 3 or ["create", "-h"] not in calls
    (merge,) = (call for call in calls if call[0] == "merge")
    head = ["merge", "--log-level", "warn", "--prefetch-policy", "fs", "--output-json", "NEW",
            "--bootstrap", "NEW"]  # fmt: skip
    assert [("NEW" if word == "FILE" else word) for word in merge[: len(head)]] == head
    assert ("--blob-digests" in merge) == zran


def test_features_are_found_in_the_help_and_a_version_in_its_line() -> None:
    said = subprocess.run([NYDUS_IMAGE, "create", "-h"], capture_output=True, text=True, check=True)
    for feature in ("--type", "tar-rafs", "--batch-size", "--encrypt"):
        assert feature in said.stdout
    version = subprocess.run(
        [NYDUS_IMAGE, "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"^Version:\s+v\d+\.\d+", version, re.M)


def through_fifos(words: list[str], source: bytes, tmp_path: Path, patterns: bytes = b"/") -> bytes:
    """Run a layer's command with FIFOs in the place of its two files; the blob."""
    blob, tar = tmp_path / "blob.fifo", tmp_path / "tar.fifo"
    for path in (blob, tar):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    places = iter([str(blob), str(tar)])
    argv = [NYDUS_IMAGE, *(next(places) if word == "FIFO" else word for word in words)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    got: list[bytes] = []
    # the library opens the blob first, then writes the tar
    reader = threading.Thread(target=lambda: got.append(blob.read_bytes()), daemon=True)
    writer = threading.Thread(target=lambda: tar.write_bytes(source), daemon=True)
    reader.start()
    writer.start()
    _, said = process.communicate(patterns, timeout=LIMIT_S)
    assert process.returncode == 0, said
    reader.join(LIMIT_S)
    writer.join(LIMIT_S)
    return got[0]




@pytest.mark.parametrize("words", [LAYER, ZRAN], ids=["rafs", "zran"])
def test_a_layer_goes_through_fifos(tmp_path: Path, words: list[str]) -> None:
    source = FIRST if words is LAYER else gzip.compress(FIRST, 1)
    blob = through_fifos(words, source, tmp_path)
    assert blob == through_fifos(words, source, tmp_path), "the same bytes each time"
    (tmp_path / "blob").write_bytes(blob)
    with rafs_v6.open(tmp_path / "blob") as image:
        assert sorted(image.listdir("/etc")) == ["one", "two"]


def test_an_empty_layer_and_one_of_whiteouts_alone(tmp_path: Path) -> None:
    for source in (tar_of(), tar_of(**{"etc__.wh.one": b""})):
        assert through_fifos(LAYER, source, tmp_path)


def test_patterns_come_on_standard_input(tmp_path: Path) -> None:
    words = [*LAYER]
    plain = through_fifos(words, FIRST, tmp_path, b"/")
    other = through_fifos(words, FIRST, tmp_path, b"/etc/two\n")
    assert plain != other


def bootstrap(tmp_path: Path, name: str, *extra: str) -> Path:
    tree = tmp_path / f"{name}.tar"
    tree.write_bytes(tar_of(**{name: name.encode() * 1000}))
    out = tmp_path / f"{name}.boot"
    (tmp_path / "blobs").mkdir(exist_ok=True)
    subprocess.run(
        [NYDUS_IMAGE, "create", "--type", "tar-rafs", "-B", out, "-D", tmp_path / "blobs", *extra,
         tree],
        check=True, capture_output=True, timeout=LIMIT_S,
    )  # fmt: skip
    return out


def merge(tmp_path: Path, *boots: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NYDUS_IMAGE, "merge", "--log-level", "warn", "--prefetch-policy", "fs", "--output-json",
         tmp_path / "out.json", "--bootstrap", tmp_path / "merged.boot", *boots],
        input="/", capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip


def test_merge_says_by_2_that_layers_do_not_fit_together(tmp_path: Path) -> None:
    """acceld then converts again without its remote cache; after 1 it gives up."""
    one, two = bootstrap(tmp_path, "one"), bootstrap(tmp_path, "two")
    assert merge(tmp_path, one, two).returncode == 0
    blobs = json.loads((tmp_path / "out.json").read_text())["blobs"]
    assert sorted(blobs) == sorted(path.name for path in (tmp_path / "blobs").iterdir())
    other = bootstrap(tmp_path, "other", "--chunk-size", "0x200000")
    unfit = merge(tmp_path, one, other)
    assert unfit.returncode == 2
    assert unfit.stderr
    assert merge(tmp_path, one, "/nonexistent").returncode == 1


def test_unpack_into_a_fifo(tmp_path: Path) -> None:
    """As BuildKit and nerdctl read a Nydus base image: each blob has its bootstrap inside."""
    blob = tmp_path / "blob"
    blob.write_bytes(through_fifos(LAYER, FIRST, tmp_path))
    out = tmp_path / "out.fifo"
    os.mkfifo(out)
    process = subprocess.Popen(
        [NYDUS_IMAGE, "unpack", "--log-level", "warn", "--bootstrap", blob, "--output", out,
         "--blob", blob],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    data = out.read_bytes()
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile("etc/one")
        assert file is not None
        assert file.read() == b"one"
