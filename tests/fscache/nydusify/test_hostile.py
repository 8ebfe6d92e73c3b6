"""Documents and layers of somebody who wants harm: a refusal in one line, and nothing is pushed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_registry import MemoryRegistry, memory_registry
from oci_kit import Entry, Layer, layer_tar, push_image

from nydus_fscache.cli.nydusify.main import main
from nydus_fscache.convert.trees import tree_of_layers
from nydus_fscache.registry.manifest import Descriptor

TRACE = "application/vnd.nydus-fscache.trace.v1+json"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryRegistry]:
    """An OCI image ``v1``, its Nydus image ``n``, both in ``m``, and a cache ``c``."""
    directory = tmp_path_factory.mktemp("memory")
    here = Path.cwd()
    with memory_registry(directory) as made:
        push_image(
            made, "v1",  # type: ignore[arg-type] # it pushes as a Pusher does
            [Layer(layer_tar([Entry("a", b"x" * 5000)])), Layer(layer_tar([Entry("b", b"y")]))],
        )  # fmt: skip
        os.chdir(directory)
        try:
            source = ("convert", "--source", f"{made.host}/app:v1", "--target")
            assert main([*source, f"{made.host}/app:n", "--build-cache-tag", "c"]) == 0
            assert main([*source, f"{made.host}/app:m", "--merge-platform"]) == 0
        finally:
            os.chdir(here)
        yield made


@pytest.fixture
def memory(
    base: MemoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MemoryRegistry]:
    for name in ("HOME", "DOCKER_CONFIG", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    work = tmp_path / "here"
    (work / "upper").mkdir(parents=True)
    (work / "list").write_text("/a\n")
    monkeypatch.chdir(work)
    kept = dict(base.manifests), dict(base.blobs)
    yield base
    base.manifests, base.blobs = kept


def commands(host: str) -> dict[str, list[str]]:
    bad, good, target = f"{host}/app:bad", f"{host}/app:v1", f"{host}/app:out"
    return {
        "convert": ["convert", "--source", bad, "--target", target],
        "cached": ["convert", "--source", good, "--target", target, "--build-cache", bad],
        "reverse": ["convert", "--source", bad, "--target", target, "--reverse"],
        "copy": ["copy", "--source", bad, "--target", target, "--all-platforms"],
        "archive": ["copy", "--source", bad, "--target", "file://out.tar"],
        "check": ["check", "--source", good, "--target", bad],
        "checked": ["check", "--source", bad, "--target", f"{host}/app:n"],
        "optimize": ["optimize", "--source", bad, "--target", target, "--prefetch-files", "list"],
        "commit": ["commit", "--source", bad, "--upper-dir", "upper", "--target", target],
        "dictionary": ["chunkdict", "generate", "--sources", bad, "--target", target],
    }


def place(document: dict[str, Any], *keys: str | int, value: object) -> None:
    """``value`` at ``keys``; None of them: it is gone."""
    *way, last = keys
    found: Any = document
    for key in way:
        found = found[key]
    if value is None:
        del found[last]
    else:
        found[last] = value


@pytest.mark.parametrize("value", [None, 7, [5], {"digest": "../../etc/passwd", "size": 1}])
@pytest.mark.parametrize(
    ("tag", "keys", "words"),
    [
        ("v1", ("config",), ("convert", "copy", "archive", "checked")),
        ("v1", ("layers",), ("convert", "copy", "archive", "checked")),
        ("v1", ("layers", 0), ("convert", "copy", "checked")),
        ("n", ("config",), ("reverse", "optimize", "commit", "dictionary", "check")),
        ("n", ("layers",), ("reverse", "optimize", "commit", "dictionary", "check")),
        ("m", ("manifests",), ("convert", "copy", "check", "optimize")),
        ("m", ("manifests", 0), ("copy", "check")),
    ],
)
def test_documents_of_the_wrong_shape(
    memory: MemoryRegistry, capsys: pytest.CaptureFixture[str], tag: str,
    keys: tuple[str | int, ...], words: tuple[str, ...], value: object,
) -> None:  # fmt: skip
    document = memory.document(tag)
    place(document, *keys, value=value)
    gone = value is None and isinstance(keys[-1], int)  # a shorter list may be an image
    memory.raw("bad", json.dumps(document).encode(), memory.manifests[tag][1])
    for word in words:
        memory.manifests.pop("out", None)
        code = main(commands(memory.host)[word])
        said = capsys.readouterr().err
        assert code == 1 or (gone and code == 0), f"{word}: {said}"
        assert "Traceback" not in said
        if code == 1:
            assert "level=fatal" in said
            assert "out" not in memory.manifests
        assert sorted(os.listdir()) == sorted({"list", "upper", *os.listdir()} & {
            "list", "upper", "output", "out.tar"
        })  # fmt: skip


@pytest.mark.parametrize("value", [None, 7, [5], [None]])
def test_a_cache_of_the_wrong_shape_is_left_out(
    memory: MemoryRegistry, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    document = memory.document("c")
    place(document, "layers", value=value)
    memory.raw("bad", json.dumps(document).encode(), memory.manifests["c"][1])
    assert main(commands(memory.host)["cached"]) == 0
    assert "is left out" in capsys.readouterr().err


@pytest.mark.parametrize("value", [7, 1.5, True, "x", [5], {"digest": "x"}])
@pytest.mark.parametrize("form", ["archive", "layout"])
def test_an_index_of_a_file_of_the_wrong_shape(
    memory: MemoryRegistry, capsys: pytest.CaptureFixture[str], value: object, form: str
) -> None:
    place = "a.tar" if form == "archive" else "a/"
    assert main(["copy", "--source", f"{memory.host}/app:v1", "--target", "file://a/"]) == 0
    Path("a/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": value}))
    if form == "archive":
        with tarfile.open("a.tar", "w") as tar:
            tar.add("a", ".")
    capsys.readouterr()
    words = ["--source", f"file://{place}", "--target", f"{memory.host}/app:out"]
    assert main(["copy", *words]) == 1
    said = capsys.readouterr().err
    assert "level=fatal" in said
    assert "Traceback" not in said
    assert "out" not in memory.manifests


def test_halves_of_letters_are_written_as_go_does(memory: MemoryRegistry) -> None:
    document = memory.document("v1")
    config = json.loads(memory.blobs[document["config"]["digest"]])
    config["config"]["Labels"] = {"half": "\ud800"}
    body = json.dumps(config).encode()
    document["config"] |= {"digest": f"sha256:{memory.blob(body)}", "size": len(body)}
    memory.manifest("bad", document)
    assert main(commands(memory.host)["convert"]) == 0
    made = json.loads(memory.blobs[memory.document("out")["config"]["digest"]])
    assert made["config"]["Labels"] == {"half": "\ufffd"}


@pytest.mark.parametrize("word", ["commit", "optimize", "dictionary", "check"])
def test_a_bootstrap_of_noise(
    memory: MemoryRegistry, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    """Its layer has the right digest and the right diff id."""
    document = memory.document("n")
    last = document["layers"][-1]
    tar = bytearray(gzip.decompress(memory.blobs[last["digest"]]))
    tar[1024 + 1024 : 1024 + 1024 + 256] = bytes(range(256))  # the super block and what follows
    data = gzip.compress(bytes(tar))
    last |= {"digest": f"sha256:{memory.blob(data)}", "size": len(data)}
    config = json.loads(memory.blobs[document["config"]["digest"]])
    config["rootfs"]["diff_ids"][-1] = f"sha256:{hashlib.sha256(tar).hexdigest()}"
    body = json.dumps(config).encode()
    document["config"] |= {"digest": f"sha256:{memory.blob(body)}", "size": len(body)}
    memory.manifest("bad", document)
    assert main(commands(memory.host)[word]) == 1
    said = capsys.readouterr().err
    assert "level=fatal" in said
    assert "Traceback" not in said
    assert "out" not in memory.manifests


def referring(memory: MemoryRegistry, change: Change) -> str:
    """A trace under the fallback tag of ``n``, changed; the tag."""
    (Path("t")).write_text(json.dumps({"version": 1, "accesses": [[blob_of(memory), 0, 5, 0, 1]]}))
    assert main(["trace", "push", "--target", f"{memory.host}/app:n", "--trace", "t"]) == 0
    digest = hashlib.sha256(memory.manifests["n"][0]).hexdigest()
    tag = f"sha256-{digest}"
    index = memory.document(tag)
    document = memory.document(index["manifests"][0]["digest"])
    change(document)
    index["manifests"][0]["digest"] = memory.manifest("changed", document)
    memory.manifest(tag, index)
    return tag


def blob_of(memory: MemoryRegistry) -> str:
    return str(memory.document("n")["layers"][0]["digest"]).removeprefix("sha256:")


def pulled(memory: MemoryRegistry) -> int:
    return main(["trace", "pull", "--target", f"{memory.host}/app:n", "--output", "got"])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["subject"].update(digest=f"sha256:{'0' * 64}"),
        lambda d: d.pop("subject"),
        lambda d: d["layers"][0].update(size=1 << 30),
        lambda d: d["layers"][0].update(digest=f"sha256:{'0' * 64}"),
        lambda d: d.update(layers=d["layers"] * 2),
        lambda d: d.update(layers=7),
    ],
    ids=["other-subject", "no-subject", "1GB", "absent", "two", "none"],
)
def test_a_trace_that_is_not_of_this_image_hides_no_other(
    memory: MemoryRegistry, capsys: pytest.CaptureFixture[str], change: Change
) -> None:
    tag = referring(memory, change)
    asked = len(memory.asked)
    assert pulled(memory) == 1
    said = capsys.readouterr().err
    assert "is left out" in said
    assert "has no trace" in said
    assert len(memory.asked) - asked < 20
    index = memory.document(tag)
    index["manifests"].append("nonsense")
    index["manifests"].append({**index["manifests"][0], "digest": "sha256:x"})
    memory.manifest(tag, index)
    index = memory.document(tag)
    assert pulled(memory) == 1
    memory.raw(tag, json.dumps({**index, "manifests": []}).encode(), index["mediaType"])
    assert main(["trace", "push", "--target", f"{memory.host}/app:n", "--trace", "t"]) == 0
    good = memory.document(tag)["manifests"]
    memory.manifest(tag, {**index, "manifests": [*good, *index["manifests"]]})
    assert pulled(memory) == 0
    assert json.loads(Path("got").read_text())["accesses"]


class _Store:
    """One layer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open_blob(self, digest: str, size: int) -> Any:
        return io.BytesIO(self._data)


def tree_of(*tars: bytes) -> set[str]:
    found = {}
    for tar in tars:
        found[f"sha256:{hashlib.sha256(tar).hexdigest()}"] = tar
    layers = [Descriptor("", digest, len(tar), {}) for digest, tar in found.items()]

    class Stores(_Store):
        def open_blob(self, digest: str, size: int) -> Any:
            return io.BytesIO(found[digest])

    return set(tree_of_layers(Stores(b""), layers, lambda: False))  # type: ignore[arg-type]


def test_check_applies_layers_as_containerd_does() -> None:
    lower = layer_tar([Entry("d", mode=0o755), Entry("d/x", b""), Entry("f", b"")])
    assert tree_of(lower, layer_tar([Entry("e/.wh.no", b"")])) == {"/d", "/d/x", "/f", "/e"}
    assert tree_of(lower, layer_tar([Entry("d/.wh..wh..opq", b"")])) == {"/d", "/f"}
    assert tree_of(lower, layer_tar([Entry(".wh.d", b""), Entry("d", b"")])) == {"/d", "/f"}
    assert tree_of(lower, layer_tar([Entry(".wh..wh..opq", b""), Entry("g", b"")])) == {"/g"}
    both = layer_tar([Entry("d", mode=0o755), Entry("d/y", b""), Entry("d", b"now a file")])
    assert tree_of(lower, both) == {"/d", "/f"}


def test_many_whiteouts_cost_one_walk() -> None:
    count = 20_000
    lower = layer_tar([Entry(f"f{n}", b"") for n in range(count)])
    upper = layer_tar([Entry(f".wh.g{n}", b"") for n in range(count)])
    began = time.process_time()
    assert len(tree_of(lower, upper)) == count
    assert time.process_time() - began < 20  # each for itself took minutes


def test_numbers_of_a_header_that_mean_nothing(
    memory: MemoryRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = bytearray(layer_tar([Entry("n", kind=tarfile.CHRTYPE, device=(1, 3))]))
    tar[100:108] = b"\xff" * 8  # a mode of -1
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    push_image(memory, "bad", [Layer(bytes(tar))])  # type: ignore[arg-type]
    assert main(commands(memory.host)["checked"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "file not found" in said
