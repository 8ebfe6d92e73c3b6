"""Registries that fail, disks that are full, and Ctrl-C at each step: the right image, or none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import Answer, Fault, Proxy, cut, flip, status
from oci_kit import (
    BASE,
    OCI_INDEX,
    OCI_TAR,
    Entry,
    Layer,
    Nydusify,
    get,
    layer_tar,
    noise,
    push_image,
    tags,
    two_layers,
)
from servers import Pusher
from watched import family


def convert(proxy: Proxy, repo: str, tag: str = "n") -> tuple[str, ...]:
    # Pushed to another repository: nothing of it is there.
    return (
        "convert", "--source", f"{proxy.host}/{repo}:v1",
        "--target", f"{proxy.host}/{repo}-t:{tag}", "--push-retry-delay", "100ms",
    )  # fmt: skip


BLOB, MANIFEST, UPLOADS = r"/blobs/sha256:", r"/manifests/", r"/blobs/uploads/"
FaultWords = tuple[str, str, Callable[[Answer], Answer], int]
AGAIN = status(429, {"Retry-After": "1"})


@pytest.mark.parametrize(
    "faults",
    [
        [("GET", BLOB, cut, 3)],
        [("GET", MANIFEST, cut, 1)],
        [("GET", MANIFEST, AGAIN, 1), ("GET", BLOB, AGAIN, 1), ("HEAD", BLOB, AGAIN, 1)],
        [("POST", UPLOADS, AGAIN, 1), ("PUT", UPLOADS, AGAIN, 1), ("PUT", MANIFEST, AGAIN, 1)],
        [("PATCH", UPLOADS, status(503), 2), ("PUT", UPLOADS, status(502), 2)],
        [("GET", BLOB, status(500), 2), ("PUT", MANIFEST, status(504), 2)],
    ],
    ids=["cut-blobs", "cut-manifest", "429-pull", "429-push", "busy-upload", "busy"],
)  # fmt: skip
def test_what_passes_is_gone_on_with(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy,
    faults: list[FaultWords],
) -> None:  # fmt: skip
    push_image(push, "v1", [*two_layers(), Layer(layer_tar([Entry("r", os.urandom(6 << 20))]))])
    words = convert(proxy, repo)
    proxy.faults = [Fault(*fault) for fault in faults]
    nydusify.run(*words)
    assert all(fault.times == 0 for fault in proxy.faults), proxy.asked
    made = get(registry, f"{repo}-t", "n").content
    nydusify.run(*convert(proxy, repo, "good"))
    assert made == get(registry, f"{repo}-t", "good").content
    nydusify.run(
        "check", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}-t:n"
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (("GET", BLOB, flip, 99), "came as"),
        (("PUT", MANIFEST, status(503), 99), "answers 503"),
        (("PUT", UPLOADS, status(400), 99), "answers 400"),
        (("POST", UPLOADS, status(403), 99), "answers 403"),
        (("GET", MANIFEST, lambda _: (200, {}, b" " * (9 << 20)), 99), "of more than"),
        (("GET", MANIFEST, lambda _: (200, {}, b"[" * 100_000), 99), "not a JSON object"),
    ],
    ids=["wrong-bytes", "no-manifest", "no-blob", "forbidden", "huge", "nested"],
)
def test_what_does_not_pass_leaves_nothing(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy, fault: FaultWords,
    said: str,
) -> None:  # fmt: skip
    push_image(push, "v1", two_layers())
    proxy.faults = [Fault(*fault)]
    told = nydusify.run(*convert(proxy, repo), code=1)
    assert said in told
    assert "Traceback" not in told
    assert get(registry, f"{repo}-t", "n").status_code == 404
    assert nydusify.left() == []


STEPS = {
    "manifest": "GET /v2/REPO/manifests", "config": "GET /v2/REPO/blobs",
    "looking": "HEAD /v2/REPO-t/blobs", "begin": "POST /v2/REPO-t/blobs",
    "part": "PATCH /v2/REPO-t/blobs", "end": "PUT /v2/REPO-t/blobs",
    "name": "PUT /v2/REPO-t/manifests",
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("which", ["first", "last"])
def test_an_interrupt_at_each_step(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy, step: str, which: str
) -> None:
    push_image(push, "v1", [*two_layers(), Layer(layer_tar([Entry("r", os.urandom(6 << 20))]))])
    words = convert(proxy, repo)
    wanted = STEPS[step].replace("REPO", repo)
    times = 1
    if which == "last":
        nydusify.run(*convert(proxy, repo, "before"))
        times = sum(line.startswith(wanted) for line in proxy.asked)
        words = tuple(word.replace(f"{repo}-t:n", f"{repo}-u:n") for word in words)
        wanted = wanted.replace("-t/", "-u/")
    seen = 0

    def watch(_: int, line: str) -> None:
        nonlocal seen
        if line.startswith(wanted):
            seen += 1
            if seen == times:
                pids.extend(family(process.pid))
                process.send_signal(signal.SIGINT)

    pids: list[int] = []
    proxy.watch = watch
    process = subprocess.Popen(
        nydusify.argv(*words), cwd=nydusify.directory, env=nydusify.environment(),
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert seen >= times, proxy.asked
    target = words[4].rpartition("/")[2].partition(":")[0]
    made = get(registry, target, "n")
    assert process.returncode == 130 or made.status_code == 200, told.decode()
    assert b"Traceback" not in told
    assert nydusify.left() == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    if made.status_code == 200:  # too late: all is there
        nydusify.run(
            "check", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{target}:n"
        )


@contextlib.contextmanager
def small_disk(point: Path, size: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no small file system")
@pytest.mark.parametrize("what", ["tmpdir", "work", "archive", "layout", "local"])
def test_a_full_disk(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path, what: str
) -> None:
    push_image(push, "v1", [Layer(layer_tar([Entry("r", os.urandom(6 << 20))]))])
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}-t:n"
    with small_disk(tmp_path / "small", "2m") as small:
        config = json.dumps({"dir": f"{small}/blobs"})
        words, env = {
            "tmpdir": (["--prefetch-dir", "/r"], {"TMPDIR": str(small)}),
            "work": (["--work-dir", f"{small}/w", "--target-archive", "out.tar"], {}),
            "archive": (["--target-archive", f"{small}/out.tar"], {}),
            "layout": (["--target-archive", f"{small}/out/"], {}),
            "local": (["--backend-type", "localfs", "--backend-config", config], {}),
        }[what]
        said = nydusify.run(
            "convert", "--source", source, "--target", target, *words, env=env, code=1
        )
        assert "o space left on device" in said
        assert "Traceback" not in said
        left = [p for p in small.rglob("*") if p.is_file() and p.stat().st_size > 4096]
        assert left == []
    assert nydusify.left() == []
    assert get(registry, f"{repo}-t", "n").status_code == 404


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no small file system")
def test_a_full_disk_under_the_other_commands(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    push_image(push, "v1", [Layer(layer_tar([Entry("r", os.urandom(3 << 20))]))])
    source, target = f"{registry}/{repo}:n", f"{registry}/{repo}-t:n"
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", source)
    (nydusify.directory / "list").write_text("/r\n")
    tree = nydusify.directory / "tree"
    tree.mkdir()
    (tree / "r").write_bytes(os.urandom(3 << 20))
    with small_disk(tmp_path / "small", "1m") as small:
        work = ("--work-dir", f"{small}/w")
        for words in (
            ("optimize", "--source", source, "--target", target, "--prefetch-files", "list", *work),
            ("convert", "--reverse", "--source", source, "--target", target, *work),
            ("copy", "--source", source, "--target", f"file://{small}/out.tar"),
            ("copy", "--source", source, "--target", "file://out.tar", *work),
            ("build", "--source-dir", "tree", "--name", "x", "--output-dir", f"{small}/b"),
        ):
            said = nydusify.run(*words, code=1)
            assert "o space left on device" in said, words
            assert "Traceback" not in said
            left = [p for p in small.rglob("*") if p.is_file() and p.stat().st_size > 4096]
            assert left == [], words
    assert nydusify.left() == ["list", "tree"]
    assert get(registry, f"{repo}-t", "n").status_code == 404


def test_layers_without_anything_in_them(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    empty = Layer(bytes(1024))
    plain = Layer(bytes(10240), OCI_TAR)
    only = Layer(layer_tar([Entry("d", mode=0o755), Entry("d/.wh.x", b"")]))
    push_image(push, "v1", [empty, Layer(layer_tar(BASE)), plain, only, empty])
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}:n"
    nydusify.run("convert", "--source", source, "--target", target)
    assert len(get(registry, repo, "n").json()["layers"]) == 6
    assert "verified image" in nydusify.run("check", "--source", source, "--target", target)
    push_image(push, "none", [empty])
    nydusify.run("convert", "--source", f"{registry}/{repo}:none", "--target-suffix", "-n")
    nydusify.run("check", "--target", f"{registry}/{repo}:none-n")


@pytest.mark.parametrize("name", ["../out", "/../../out", "a/../../out"])
def test_names_that_leave_the_tree(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, name: str
) -> None:
    push_image(push, "v1", [Layer(layer_tar([Entry(name, noise(100, 1))]))])
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n", code=1
    )
    assert "out" in said
    assert tags(registry, repo) == ["v1"]
    assert nydusify.left() == []


def test_an_index_of_indexes(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    one = push_image(push, "v1", two_layers())
    inner = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one]}
    digest = push.manifest("inner", inner)
    place = {"mediaType": OCI_INDEX, "digest": digest, "size": len(json.dumps(inner))}
    push.manifest("outer", {**inner, "manifests": [place]})
    for command in ("convert", "copy"):
        said = nydusify.run(
            command, "--source", f"{registry}/{repo}:outer", "--target", f"{registry}/{repo}:n",
            "--all-platforms", code=1,
        )  # fmt: skip
        assert "index of indexes" in said
    assert "n" not in tags(registry, repo)
