"""Layers as they are: odd names, links on the way, whiteouts of all types, implied directories."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build_kit import image_tree
from tar_kit import CHAR, DIR, FIFO, HARD, LINK, MTIME, member, tar, with_gnu_times

import rafs_v6
from rafs_v6.cli import main

TYPES = ["tar-rafs", "targz-ref", "tar-tarfs"]


class Layers:
    """Builds in ``where``; ``where/blobs`` has what is stored."""

    def __init__(self, where: Path) -> None:
        self._where, self._count = where, 0
        (where / "blobs").mkdir()
        self.blobs = where / "blobs"

    def path(self) -> Path:
        self._count += 1
        return self._where / f"n{self._count}"

    def create(self, data: bytes, *options: str, kind: str = "tar-rafs", rc: int = 0) -> Path:
        source, boot = self.path(), self.path()
        source.write_bytes(gzip.compress(data, mtime=0) if kind.startswith("targz") else data)
        argv = ["create", "-t", kind, "-B", str(boot), "-D", str(self.blobs), *options]
        assert main([*argv, str(source)]) == rc
        assert boot.exists() == (rc == 0)
        return boot

    def merge(self, *layers: Path) -> Path:
        boot = self.path()
        assert main(["merge", "-B", str(boot), *map(str, layers)]) == 0
        return boot

    def chain(self, *tars: bytes) -> Path:
        boot = self.create(tars[0])
        for data in tars[1:]:
            boot = self.create(data, "--parent-bootstrap", str(boot))
        return boot


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def _names(boot: Path) -> list[str]:
    return [os.fsdecode(p)[1:] for p, _ in rafs_v6.open(boot).walk() if p != b"/"]


def _entry(boot: Path, path: str) -> tuple[int, int, int, dict[bytes, bytes]]:
    image = rafs_v6.open(boot)
    inode = image.lookup(path)
    return stat.S_IMODE(inode.mode), inode.uid, inode.mtime, image.bootstrap.xattrs(inode)


@pytest.mark.parametrize("kind", TYPES)
def test_a_leading_slash_is_the_root_of_the_image(layers: Layers, kind: str) -> None:
    data = tar(
        member("./", DIR), member("/usr", DIR), member("/usr/tool", data=b"x"),
        member("//etc//deep/f", data=b"f"), member("usr/java", LINK, link="/usr/lib/java"),
        member("/usr/h", HARD, link="/usr/tool"), member("h3", HARD, link="//usr/tool"),
    )  # fmt: skip
    boot = layers.create(data, kind=kind)
    names = ["etc", "etc/deep", "etc/deep/f", "h3", "usr", "usr/h", "usr/java", "usr/tool"]
    assert sorted(_names(boot)) == names
    image = rafs_v6.open(boot)
    assert image.lookup("/usr/tool").nid == image.lookup("/h3").nid == image.lookup("/usr/h").nid
    assert image.bootstrap.read_link(image.lookup("/usr/java")) == b"/usr/lib/java"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("link", "to", "name"),
    [
        ("nm/p", "../store/p", "nm/p/f"), ("lib", "/store/p", "lib/f"),
        ("lib", "../../store/./p", "lib/f"), ("lib", "/l2", "lib/f"), ("lib", "l2/../p", "lib/f"),
    ],
)  # fmt: skip
def test_links_on_the_way_are_followed_within_the_root(
    layers: Layers, kind: str, link: str, to: str, name: str
) -> None:
    before = [member("store", DIR), member("l2", LINK, link="store/p")]
    data = tar(*before, member(link, LINK, link=to), member(name, data=b"f"))
    boot = layers.create(data, kind=kind)
    image = rafs_v6.open(boot)
    assert image.lookup("/store/p/f").size == 1
    assert image.bootstrap.read_link(image.lookup("/" + link)) == to.encode()
    assert {n for n in _names(boot) if n.endswith("f")} == {"store/p/f"}


def test_hard_links_directories_and_whiteouts_below_a_link(layers: Layers) -> None:
    low = layers.create(tar(member("usr/lib/old", data=b"o"), member("usr/lib/kept", data=b"k")))
    up = tar(
        member("usr/lib", DIR), member("lib", LINK, link="usr/lib"), member("lib/.wh.old"),
        member("lib/d", DIR), member("lib/d/f", data=b"f"), member("h", HARD, link="lib/d/f"),
    )  # fmt: skip
    merged = layers.merge(low, layers.create(up))
    names = ["h", "lib", "usr", "usr/lib", "usr/lib/d", "usr/lib/d/f", "usr/lib/kept"]
    assert sorted(_names(merged)) == names


@pytest.mark.parametrize(
    "white",
    [
        member("d/.wh.a", HARD, link=".wh..wh.aufs"), member("d/.wh.a", LINK, link="nowhere"),
        member("d/.wh.a", DIR), member("d/.wh.a", CHAR), member("d/.wh.a", FIFO),
        with_gnu_times(member("d/.wh.a", form=1)),
    ],
)  # fmt: skip
def test_of_a_whiteout_only_the_name_counts(layers: Layers, white: bytes) -> None:
    low = tar(member("d", DIR), member("d/a"), member("d/b"))
    up = tar(white, member("d/n"))
    # Converters build layers without rules, and leave them to merge.
    bare = layers.create(up, "--whiteout-spec", "none")
    for boot in (
        layers.merge(layers.create(low), layers.create(up)), layers.chain(low, up),
        layers.merge(layers.create(low), bare),
    ):  # fmt: skip
        assert _names(boot) == ["d", "d/b", "d/n"]


def test_no_whiteout_is_left(layers: Layers) -> None:
    low = tar(
        member(".wh.ghost"), member(".wh..wh.aufs"), member(".wh..wh.plnk", DIR),
        member(".wh..wh.plnk/1.2"), member("d", DIR), member("d/.wh.x"), member("d/.wh..wh..opq"),
        member("d/f"),
    )  # fmt: skip
    middle, top = tar(member("e/.wh..wh..opq"), member("d/.wh.y")), tar(member("h"))
    boots = [layers.create(data) for data in (low, middle, top)]
    for boot in (layers.merge(*boots), layers.chain(low, middle, top)):
        assert _names(boot) == ["d", "d/f", "e", "h"]


_LOW = tar(
    member("./", DIR, mode=0o751, owner=9), member("tmp", DIR, mode=0o1777),
    member("app", DIR, mode=0o750, owner=7, xattrs={"user.q": "1"}), member("app/x"),
    member("opq", DIR, mode=0o700, owner=3), member("opq/old"), member("own", DIR, mode=0o700),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["tar-rafs", "targz-ref"])
def test_an_implied_directory_is_as_the_lower_one(layers: Layers, kind: str) -> None:
    up = tar(
        member("tmp/f"), member("app/.wh.x"), member("app/deep/er", DIR), member("opq/n"),
        member("opq/.wh..wh..opq"), member("own/f"), member("own", DIR, mode=0o711, owner=4),
    )  # fmt: skip
    boots = [layers.create(data, kind=kind) for data in (_LOW, up)]
    over = layers.create(up, "--parent-bootstrap", str(boots[0]), kind=kind)
    for boot in (layers.merge(*boots), over):
        assert _entry(boot, "/") == (0o751, 9, MTIME, {})
        assert _entry(boot, "/tmp") == (0o1777, 0, MTIME, {})
        assert _entry(boot, "/app") == (0o750, 7, MTIME, {b"user.q": b"1"})
        assert _entry(boot, "/opq") == (0o700, 3, MTIME, {})
        assert _entry(boot, "/own") == (0o711, 4, MTIME, {})
        assert _entry(boot, "/app/deep") == (0o755, 0, 0, {})
        assert not {"app/x", "opq/old"} & set(_names(boot))
    # What is implied stays so: a base may come to lie below the merged layers later.
    again = layers.merge(boots[0], layers.merge(boots[1], layers.create(tar(member("tmp/g")))))
    assert _entry(again, "/tmp") == (0o1777, 0, MTIME, {})
    assert _entry(again, "/") == (0o751, 9, MTIME, {})


@pytest.mark.parametrize("kind", ["tar-rafs", "targz-ref"])
@pytest.mark.parametrize("to", ["usr/lib", "/usr/lib", "l2", "../usr/./lib"])
def test_names_below_links_of_a_lower_layer_lie_where_they_lead(
    layers: Layers, kind: str, to: str
) -> None:
    low = tar(
        member("usr/lib", DIR, mode=0o711), member("usr/lib/old"), member("usr/lib/kept"),
        member("lib", LINK, link=to), member("l2", LINK, link="/usr/lib"),
    )  # fmt: skip
    up = tar(member("lib/x.so", data=b"x"), member("lib/.wh.old"), member("lib/d/e/f"))
    boots = [layers.create(data, kind=kind) for data in (low, up)]
    over = layers.create(up, "--parent-bootstrap", str(boots[0]), kind=kind)
    want = ["l2", "lib", "usr", "usr/lib", "usr/lib/d", "usr/lib/d/e", "usr/lib/d/e/f"]
    want += ["usr/lib/kept", "usr/lib/x.so"]
    for boot in (layers.merge(*boots), over):
        assert sorted(_names(boot)) == want
        assert rafs_v6.open(boot).lookup("/lib").is_symlink
        assert _entry(boot, "/usr/lib") == (0o711, 0, MTIME, {})


def test_a_link_that_is_replaced_or_hidden_is_not_followed(layers: Layers) -> None:
    low = layers.create(tar(member("usr/lib/a"), member("lib", LINK, link="usr/lib")))
    for up in (
        tar(member("lib", DIR), member("lib/b")), tar(member(".wh.lib"), member("lib/b")),
        tar(member(".wh..wh..opq"), member("lib/b")),
    ):  # fmt: skip
        names = _names(layers.merge(low, layers.create(up)))
        assert "lib/b" in names
        assert "usr/lib/b" not in names


def test_links_of_a_lower_layer_that_lead_nowhere(
    layers: Layers, capsys: pytest.CaptureFixture[str]
) -> None:
    up = layers.create(tar(member("l/x")))
    made = layers.merge(layers.create(tar(member("l", LINK, link="new/dir"))), up)
    assert sorted(_names(made)) == ["l", "new", "new/dir", "new/dir/x"]
    for low in (
        tar(member("l", LINK, link="m"), member("m", LINK, link="l")),
        tar(member("l", LINK, link="f"), member("f")),
    ):
        boot = layers.path()
        assert main(["merge", "-B", str(boot), str(layers.create(low)), str(up)]) == 1
        assert not boot.exists()
        err = capsys.readouterr().err
        assert "too many symbolic links" in err or "f is not a directory" in err


def test_what_linux_has_no_xattr_for_is_left_out_and_named(
    layers: Layers, capsys: pytest.CaptureFixture[str]
) -> None:
    acl = "\x02\0\0\0"
    xattrs = {
        "user.ok": "y", "com.apple.provenance": "v", "system.nfs4_acl": "v", "user": "v",
        "user.": "v", "security.": "v", "system.posix_acl_access": acl, "user." + "n" * 251: "v",
    }  # fmt: skip
    data = tar(member("f", xattrs=xattrs), member("d", DIR, xattrs=xattrs))
    for kind in TYPES:
        boot = layers.create(data, kind=kind)
        for path in ("/f", "/d"):
            found = _entry(boot, path)[3]
            assert found == {b"user.ok": b"y", b"system.posix_acl_access": acl.encode()}
        err = capsys.readouterr().err
        for key in set(xattrs) - {"user.ok", "system.posix_acl_access"}:
            name = key[:255]
            assert f"warning: left out, Linux has no such xattr: {name} of f (and 1 more)" in err


@pytest.mark.parametrize("kind", TYPES)
def test_the_owner_that_linux_has_not_is_refused(
    layers: Layers, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layers.create(tar(member("file", owner=0xFFFFFFFF)), kind=kind, rc=1)
    assert "file: uid 4294967295" in capsys.readouterr().err
    boot = layers.create(tar(member("file", owner=0xFFFFFFFE)), kind=kind)
    assert _entry(boot, "/file")[1] == 0xFFFFFFFE


def test_names_in_messages_are_names(layers: Layers, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("d/../../\u00fc", "a\n/../../b", "\udcff/../x", "n" * 256):
        layers.create(tar(member(name)), rc=1)
        err = capsys.readouterr().err
        assert "b'" not in err
        assert err.count("\n") == 1
    assert main(["create", "-B", "x", "-D", str(layers.blobs), "n\u00f6src"]) == 1
    assert "n\u00f6src: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*TYPES, "targz-rafs"])
def test_a_tar_without_a_byte_is_an_empty_layer(layers: Layers, kind: str) -> None:
    empty = layers.create(b"", kind=kind)
    assert _names(empty) == []
    if kind != "tar-tarfs":
        low, top = layers.create(tar(member("a"))), layers.create(tar(member("b")))
        assert _names(layers.merge(low, empty, top)) == ["a", "b"]


def test_many_names_from_few_bytes_are_refused(layers: Layers) -> None:
    """Memory follows what a layer costs to store: 900,000 names of 50 KB are not taken."""
    source = layers.path()
    with gzip.open(source, "wb", 9) as out:
        for _ in range(600):
            out.write(member("/".join("a" * 1000), DIR))
        deep = b"".join(member(f"{i}/" + "/".join("a" * 1900), DIR) for i in range(200))
        out.write(deep)
    assert source.stat().st_size < 200_000
    code = (
        "import re, sys; from rafs_v6.cli import main\n"
        "rc = main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]); sys.exit(rc)"
    )
    argv = ["create", "-t", "targz-rafs", "-B", layers.path(), "-D", layers.blobs, source]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "more names than one of its size can have" in done.stderr
    assert int(done.stdout.split()[-1]) < 150 << 10


def test_names_of_one_inode_of_a_directory_are_one_file(layers: Layers, tmp_path: Path) -> None:
    src = tmp_path / "src"
    (src / "sub").mkdir(parents=True)
    os.symlink("x", src / "l1")
    os.mkfifo(src / "p1")
    os.mknod(src / "c1", stat.S_IFCHR | 0o644, os.makedev(1, 3))
    (src / "r1").write_bytes(b"r")
    for kind in "lpcr":
        os.link(src / f"{kind}1", src / f"{kind}2", follow_symlinks=False)
        os.link(src / f"{kind}1", src / "sub" / f"{kind}3", follow_symlinks=False)
    boot = layers.path()
    assert main(["create", "-B", str(boot), "-D", str(layers.blobs), str(src)]) == 0
    first = [
        member("l1", LINK, link="x"), member("p1", FIFO), member("c1", CHAR),
        member("r1", data=b"r"),
    ]  # fmt: skip
    others = [
        member(name, HARD, link=f"{kind}1")
        for kind in "lpcr"
        for name in (f"{kind}2", f"sub/{kind}3")
    ]
    of_tar = layers.create(tar(*first, *others))
    for found in (boot, of_tar):
        image = rafs_v6.open(found)
        for kind in "lpcr":
            inodes = [image.lookup(p) for p in (f"/{kind}1", f"/{kind}2", f"/sub/{kind}3")]
            assert len({inode.nid for inode in inodes}) == 1
            assert inodes[0].nlink == 3


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("toc", [[], ["--features", "blob-toc"]])
def test_an_inline_layer_that_refers_is_built_upon(
    layers: Layers, packed: bool, toc: list[str], tmp_path: Path
) -> None:
    data = os.urandom(1_500_000)
    content = tar(member("f", data=data), member("g", data=data[:70_000]))
    content = gzip.compress(content, 1, mtime=0) if packed else content
    source, blob = layers.path(), layers.path()
    source.write_bytes(content)
    argv = ["create", "-t", "targz-ref", "--blob-inline-meta", *toc, "-b", str(blob), str(source)]
    report = layers.path()
    assert main([*argv, "-J", str(report)]) == 0
    document: dict[str, Any] = json.loads(report.read_text())
    assert document["compressor"] == ("gzip" if packed else "none")
    (layers.blobs / document["blobs"][0]).write_bytes(content)

    named = layers.blobs / hashlib.sha256(blob.read_bytes()).hexdigest()
    blob.rename(named)
    paths, empty = layers.path(), tmp_path / "empty"
    paths.write_text("/g\n")
    empty.mkdir()
    blobs = ["-D", str(layers.blobs)]
    for command in (
        ["create", *blobs, "--parent-bootstrap", str(named), str(empty)],
        ["compact", str(named), *blobs], ["optimize", str(named), *blobs, "-p", str(paths)],
        ["merge", str(named)],
    ):  # fmt: skip
        boot = layers.path()
        out = "-B" if command[0] in ("create", "merge") else "-O"
        assert main([*command, out, str(boot)]) == 0
        assert main(["check", str(boot), *blobs]) == 0
        assert rafs_v6.open(boot, blobs=layers.blobs).read("/f") == data


def test_an_inline_layer_under_another_name_is_refused(
    layers: Layers, capsys: pytest.CaptureFixture[str]
) -> None:
    source, blob, boot = layers.path(), layers.path(), layers.path()
    source.write_bytes(gzip.compress(tar(member("f", data=b"x" * 9000))))
    argv = ["create", "-t", "targz-ref", "--blob-inline-meta", "-b", str(blob), str(source)]
    assert main(argv) == 0
    empty = layers.path()
    empty.mkdir()
    argv = ["create", "-B", str(boot), "-D", str(layers.blobs), "--parent-bootstrap", str(blob)]
    assert main([*argv, str(empty)]) == 1
    assert "name the file by the digest" in capsys.readouterr().err
    assert not boot.exists()


def test_both_sources_of_a_tree_say_the_same(layers: Layers, tmp_path: Path) -> None:
    """unpack's tar is built again as the image that it came from."""
    first = layers.create(_LOW)
    out = layers.path()
    assert main(["unpack", str(first), "-D", str(layers.blobs), "--output", str(out)]) == 0
    again = layers.create(out.read_bytes())
    assert image_tree(rafs_v6.open(again)) == image_tree(rafs_v6.open(first))
