"""nydus-image as a program: exit codes, where output goes, options of the original."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import rafs_v6
from rafs_v6.cli import main
from rafs_v6.format.erofs import BlobFeatures
from rafs_v6.writer.bootstrap import write_bootstrap
from rafs_v6.writer.load import load

MAGIC = bytes.fromhex("e2e1f5e0")


class Run:
    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.rc, self.out, self.err = done.returncode, done.stdout, done.stderr.decode()


class Place:
    """A tree with one file, its image, and a list of paths, in the working directory."""

    def __init__(self) -> None:
        Path("tree").mkdir()
        Path("blobs").mkdir()
        Path("tree/f").write_bytes(os.urandom(9000))
        Path("paths").write_text("/f\n")
        assert main(["create", "-B", "image.boot", "-D", "blobs", "tree"]) == 0
        self.boot = Path("image.boot").read_bytes()

    def run(
        self, *argv: str | Path, env: dict[str, str] | None = None, stdout: object = None,
        stdin: bytes = b"",
    ) -> Run:  # fmt: skip
        command = [sys.executable, "-m", "rafs_v6.cli", *map(str, argv)]
        return Run(
            subprocess.run(
                command, input=stdin, stderr=subprocess.PIPE, check=False,
                stdout=stdout or subprocess.PIPE,  # type: ignore[call-overload]
                env={**os.environ, **(env or {})},
            )
        )  # fmt: skip

    def files(self) -> set[Path]:
        return set(Path().rglob("*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place()


USAGE = [
    "check", "inspect", "export -B image.boot -D blobs", "export --block -B image.boot",
    "create -B x.boot tree", "create -B x.boot -D blobs", "create -t bogus -B x.boot -D blobs tree",
    "create -B x.boot --blob-inline-meta -D blobs tree", "check image.boot -B image.boot",
    "merge -B x.boot", "merge image.boot", "unpack image.boot -D blobs", "compact -D blobs",
    "create -b x.blob --bogus tree", "bogus", "create -l bogus -B x.boot -D blobs tree",
    "-l bogus check image.boot", "create --compression-level 20 -B x.boot -D blobs tree",
    "create --chunk-size 5000 -B x.boot -D blobs tree", "export --block image.boot --threads 0",
    "unpack image.boot -D blobs --output x --threads -1",
    "create --batch-size 3 -B x -D blobs tree",
    "compact image.boot -D blobs --min-used-ratio -1", "chunkdict generate image.boot",
    "unpack image.boot -D blobs --output ''", "create -B '' -D blobs tree",
    "create -B x.boot -D '' tree", "create -B x.boot -b '' tree", "check ''",
    "create -B x.boot -D blobs -J '' tree", "merge -B '' image.boot", "stat",
    "compact image.boot -D blobs -O ''", "export --block image.boot -D blobs -O ''",
    "optimize image.boot -D blobs -p paths -O ''", "chunkdict generate -B '' image.boot",
    "create -B x.boot -D blobs ''", "create -L '' -B x.boot -D blobs tree",
]  # fmt: skip


@pytest.mark.parametrize("line", USAGE)
def test_wrong_usage_is_2_says_why_and_writes_nothing(
    place: Place, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.files()
    argv = ["" if word == "''" else word for word in line.split()]
    try:
        code: object = main(argv)
    except SystemExit as error:
        code = error.code
    assert code == 2
    err = capsys.readouterr().err
    assert err.strip()
    assert "''" not in line or "empty path" in err
    assert place.files() == before


def test_layers_that_do_not_fit_are_2_other_failures_1(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, options in (("small", ["--chunk-size", "0x10000"]), ("repeated", ["--repeatable"])):
        assert main(["create", "-B", name, "-D", "blobs", *options, "tree"]) == 0
        before = place.files()
        assert main(["merge", "-B", "x.boot", "image.boot", name]) == 2
        assert main(["check", "nosuch"]) == 1
        assert main(["create", "-B", "x.boot", "-D", "blobs", "nosuch"]) == 1
        assert main(["create", "-C", "nosuch", "-B", "x.boot", "-D", "blobs", "tree"]) == 1
        assert main(["merge", "-C", "nosuch", "-B", "x.boot", "image.boot"]) == 1
        assert main(["inspect", "-C", "nosuch", "image.boot", "-R", "stats"]) == 1
        assert place.files() == before
    capsys.readouterr()


def _to(where: str) -> dict[str, list[str]]:
    return {
        "create": ["create", "-B", where, "-D", "blobs", "tree"],
        "merge": ["merge", "-B", where, "image.boot"],
        "chunkdict": ["chunkdict", "generate", "-B", where, "image.boot"],
        "compact": ["compact", "image.boot", "-D", "blobs", "-O", where],
        "optimize": ["optimize", "image.boot", "-D", "blobs", "-p", "paths", "-O", where],
    }


@pytest.mark.parametrize("command", _to(""))
def test_a_bootstrap_on_standard_output_is_alone(place: Place, command: str) -> None:
    assert main(_to("want")[command]) == 0
    want = Path("want").read_bytes()
    for where in ("/dev/stdout", "/proc/self/fd/1"):
        piped = place.run(*_to(where)[command])
        assert (piped.rc, piped.out) == (0, want)
        assert "blob: " in piped.err
    with open("file", "wb") as f:
        assert place.run(*_to("/dev/stdout")[command], stdout=f).rc == 0
    assert Path("file").read_bytes() == want


def test_a_report_on_standard_output_is_alone(place: Place) -> None:
    Path("bad.boot").write_bytes(place.boot[:-4096])
    commands = [*_to("out").values(), ["diff", "image.boot", "image.boot"], ["check", "image.boot"]]
    commands += [["check", "-v", "image.boot", "-D", "blobs"], ["stat", "-B", "image.boot"]]
    commands += [["check", "bad.boot"]]
    for argv in commands:
        done = place.run(*argv, "-J", "-")
        assert isinstance(json.loads(done.out), dict), argv
        assert done.rc == (1 if "bad.boot" in argv else 0)
        assert not Path("-").exists()


def test_without_bootstrap_the_directory_gets_one_by_its_digest(place: Place) -> None:
    for argv in (
        ["create", "tree"],
        ["merge", "image.boot"],
        ["chunkdict", "generate", "image.boot"],
    ):
        out = Path("out-" + argv[0])
        out.mkdir()
        assert main([*argv, "-D", str(out), "-J", "report"]) == 0
        written = Path(json.loads(Path("report").read_text())["bootstrap"])
        assert written.parent == out
        data = written.read_bytes()
        assert hashlib.sha256(data).hexdigest() == written.name
        assert data[1024:1028] == MAGIC


def test_the_log_has_what_its_level_says(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    del place
    assert main(["-L", "log", "check", "image.boot"]) == 0
    assert main(["check", "-L", "log", "-l", "error", "nosuch"]) == 1
    assert main(["merge", "-L", "log2", "-l", "error", "-B", "x", "image.boot"]) == 0
    text = Path("log").read_text()
    assert re.search(r"Z INFO  begins: nydus-image -L log check image.boot\n", text)
    assert re.search(r"Z INFO  done after \d", text)
    assert re.search(r"Z ERROR failed with exit code 1: .*nosuch", text)
    assert text.count("\n") == 3
    assert Path("log2").read_text() == ""
    capsys.readouterr()
    assert main(["check", "-L", "no/such/log", "image.boot"]) == 1
    assert "--log-file" in capsys.readouterr().err


def test_version_and_help(place: Place) -> None:
    for option in ("--version", "-V"):
        lines = place.run(option).out.decode().splitlines()
        assert [line.split(":")[0] for line in lines] == [
            "Version", "Git Commit", "Build Time", "Profile"
        ]  # fmt: skip
    assert b"usage: nydus-image create" in place.run("help", "create").out
    assert place.run("help").out == place.run("--help").out


def test_options_that_only_the_original_needs_are_taken(place: Place) -> None:
    Path("config").write_text("{}")
    dictionary = ["chunkdict", "generate", "-B", "d", "-D", "blobs", "-C", "config", "-v"]
    dictionary += ["--prefetch-policy", "none", "--database", "sqlite:///d.db", "image.boot"]
    done = place.run(*dictionary)
    assert done.rc == 0
    assert re.search(rb"\n[0-9a-f]{64} 9000\nchunks: 1, 9000 bytes\n", done.out)
    for argv in (
        ["stat", "-B", "image.boot", "-C", "config"],
        ["inspect", "-D", "blobs", "-C", "config", "-R", "stats", "image.boot"],
        ["optimize", "-B", "image.boot", "-D", "blobs", "-b", "x", "-p", "paths", "-O", "o"],
    ):
        assert place.run(*argv).rc == 0, argv


def _odd_dictionary(source: Path, target: Path) -> None:
    """As the original makes them: all chunks are those of one file with an odd name."""
    image = load(source)
    tree = image.tree
    (row,) = [row for row in range(len(tree)) if tree.is_file(row)]
    tree.names[tree.name_off[row] : tree.name_off[row + 1]] = b"/"
    blobs = [
        replace(
            blob,
            record=replace(
                blob.record,
                features=blob.record.features | BlobFeatures.IS_CHUNKDICT_GENERATED,
            ),
        )
        for blob in image.blobs.values()
    ]
    target.write_bytes(b"".join(write_bootstrap(tree, blobs, image.defaults)))


def test_a_dictionary_with_an_odd_tree_is_used_and_not_mounted(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    del place
    odd = Path("dict.boot")
    _odd_dictionary(Path("image.boot"), odd)
    with pytest.raises(rafs_v6.ImageError):
        rafs_v6.open(odd)
    (known,) = [p.name for p in Path("blobs").iterdir()]
    for prefix in ("", "bootstrap="):
        create = ["create", "-B", "x", "-D", "blobs", "--chunk-dict", f"{prefix}{odd}", "tree"]
        assert main(create) == 0
        assert [b.blob_id for b in rafs_v6.open("x").bootstrap.blobs] == [known]
    assert main(["merge", "-B", "y", "--chunk-dict", str(odd), "x"]) == 0
    assert main(["compact", "x", "-D", "blobs", "--chunk-dict", f"bootstrap={odd}", "-O", "z"]) == 0
    capsys.readouterr()
    assert main(["check", str(odd)]) == 0
    assert "not an image to mount" in capsys.readouterr().out
    assert main(["stat", "-B", str(odd), "-J", "stat.json"]) == 0
    assert json.loads(Path("stat.json").read_text())["base_image"]["own_chunks"] == 1
    assert main(["create", "--chunk-size", "0x1000", *create[1:]]) == 1
    assert "use the same --chunk-size" in capsys.readouterr().err


PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}


@pytest.mark.parametrize(
    "argv",
    [["check", "-v", "odd"], ["inspect", "odd", "-R", "ls"], ["inspect", "odd"],
     ["diff", "odd", "image.boot"], ["unpack", "odd", "-D", "blobs", "--output", "out.tar"],
     ["check", "n\u00f6"]],
)  # fmt: skip
def test_names_in_a_plain_locale(place: Place, argv: Sequence[str]) -> None:
    for name in (b"\xc3\xbc", b"\xe6\x97\xa5", b"\xff\xfe"):
        with open(b"tree/" + name, "wb") as f:
            f.write(b"x")
    assert main(["create", "-B", "odd", "-D", "blobs", "tree"]) == 0
    raw = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in argv]
    usual = place.run(*raw, stdin=b"ls\nq\n")
    plain = place.run(*raw, env=PLAIN, stdin=b"ls\nq\n")
    assert plain.rc == usual.rc
    assert "Traceback" not in plain.err
    if argv[0] in ("check", "diff"):
        assert len(plain.out.splitlines()) == len(usual.out.splitlines())


def test_cache_files_are_those_of_a_node(place: Place) -> None:
    Path("tree/g").write_bytes(b"g" * 5000)
    os.link("tree/g", "tree/h")
    Path("cache").mkdir()
    assert main(["create", "-B", "x", "--blob-cache-dir", "cache", "tree"]) == 0
    ((data, meta),) = [sorted(Path("cache").iterdir())]
    image = rafs_v6.open("x", blobs="nowhere")
    (blob,) = image.bootstrap.blobs
    assert (data.name, meta.name) == (f"{blob.blob_id}.blob.data", f"{blob.blob_id}.blob.meta")
    flat = data.read_bytes()
    assert len(flat) == blob.uncompressed_size
    for path in ("/f", "/g"):
        (ref,) = image.bootstrap.chunks(image.lookup(path))
        want = Path("tree" + path).read_bytes()
        assert flat[ref.flat_off : ref.flat_off + ref.size] == want
    # The same blob, written out, has this chunk map and header (format.md 5).
    Path("out").mkdir()
    assert main(["create", "-B", "y", "-D", "out", "--compressor", "none", "tree"]) == 0
    (whole,) = Path("out").iterdir()
    assert whole.name == blob.blob_id
    assert Path("x").read_bytes() == Path("y").read_bytes()
    padded = meta.read_bytes()
    assert len(padded) == 4096 + 4096
    assert padded[4096:] == whole.read_bytes()[-4096:]
    assert place.run("create", "--blob-cache-dir", "none", "-B", "z", "tree").rc == 2
    assert place.run("create", "-E", "--blob-cache-dir", "cache", "-B", "z", "tree").rc == 2


def test_attributes_without_external_files(place: Place) -> None:
    Path("none").write_text("# nothing\n/f type=internal\n\n")
    create = ["create", "-B", "x", "-D", "blobs", "--external-blob", "ext", "--attributes"]
    assert place.run(*create, "none", "tree").rc == 0
    Path("some").write_text("/f type=external crcs=0x1\n")
    done = place.run(*create, "some", "tree")
    assert done.rc == 1
    assert "/f is external" in done.err
