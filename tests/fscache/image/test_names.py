"""What modules import, and which files of their image that is."""

from __future__ import annotations

import importlib.util
import marshal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from built import build_image
from hypothesis import given, settings
from hypothesis import strategies as st

import rafs_v6
from nydus_fscache.core.files import ROOM, imports_of, kind_of
from nydus_fscache.image import names as names_module
from nydus_fscache.image.names import Names


def _compiled(source: str, magic: bytes = importlib.util.MAGIC_NUMBER) -> bytes:
    code = compile(source, "module.py", "exec")
    return magic + bytes(12) + marshal.dumps(code)


SOURCE = """
import json, xml.etree.ElementTree as tree
from . import beside
from .package.inner import name as other, more
from ..above import thing
try:
    import tried
except ImportError:
    pass
def function():
    import later
"""
NAMED = {
    b"json", b"xml/etree/ElementTree", b"./beside", b"./package/inner", b"./package/inner/name",
    b"./package/inner/more", b"../above", b"../above/thing", b"tried",
}  # fmt: skip


def test_imports_of_compiled_python_are_those_of_the_module_itself() -> None:
    found = set(imports_of(_compiled(SOURCE)))
    assert found >= NAMED
    assert b"later" not in found


def test_of_a_version_whose_bytecode_is_not_known_all_names_are_taken() -> None:
    found = set(imports_of(_compiled(SOURCE, (3600).to_bytes(2, "little") + b"\r\n")))
    assert {b"json", b"xml/etree/ElementTree", b"./beside", b"beside"} <= found
    assert not imports_of(_compiled(SOURCE, b"\0\0\r\n"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("import a.b as c, d  # and e", {b"a/b", b"d"}),
        ("from .x import y", {b"./x", b"./x/y"}),
        ("    from a import b", {b"a", b"a/b"}),
        ("        from later import b", set()),
        ("    require 'later'", set()),
        ("\timport later", set()),
        ("autoload :Later, 'later'", set()),
        ("require 'net/http'", {b"net/http"}),
        ("require_relative 'z'", {b"./z"}),
        ('const p = require("./q.js")', {b"./q.js"}),
        ("import r from '../s.js'", {b"../s.js"}),
        ("use IO::Socket qw(t);", {b"IO/Socket"}),
        (". /etc/profile", {b"/etc/profile"}),
        ("imports are nothing, and used words neither", set()),
        ("", set()),
    ],
)
def test_imports_of_text(line: str, named: set[bytes]) -> None:
    found = set(imports_of(b"#!/bin/sh\n" + line.encode() + b"\nx = 1\n"))
    assert named <= found
    assert named or not found


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(3400, 3560))
def test_hostile_modules_name_what_fits_and_no_more(noise: bytes, at: int, magic: int) -> None:
    data = _compiled(SOURCE * 3, magic.to_bytes(2, "little") + b"\r\n")
    for module in (noise, data[:at], data[: 16 + at] + noise + data[16 + at + len(noise) :]):
        found = imports_of(module)
        assert len(found) <= 256
        assert sum(len(name) + 1 for name in found) <= ROOM


def test_a_file_full_of_names_has_bounded_names() -> None:
    many = "".join(f"import name{i}\n" for i in range(10_000))
    assert len(imports_of(many.encode())) == 256
    assert len(imports_of(_compiled(many))) == 256


LIBRARY = {
    "json/__init__.py": "", "json/__pycache__/__init__.cpython-311.pyc": "",
    "json/decoder.py": "", "json/__pycache__/decoder.cpython-311.pyc": "",
    "string.py": "", "__pycache__/string.cpython-311.pyc": "",
    "only.py": "", "data.txt": "",
    "lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so": "",
}  # fmt: skip
OTHERS = {
    "opt/app/main.py": "", "opt/app/helper.py": "",
    "srv/app/index.js": "", "srv/app/lib/util.js": "", "srv/app/lib/util.json": "",
    "srv/app/node_modules/left/index.js": "",
    "bin/tool": "", "etc/profile": "",
}  # fmt: skip


class _Image:
    def __init__(self, base: Path, files: Mapping[str, object]) -> None:
        contents = {name: name.encode() for name in files}
        build_image(base / "tree", contents, "-t", "dir-rafs", "-B", base / "boot", "-D", base)
        self.bootstrap = rafs_v6.Bootstrap.from_file(base / "boot")
        self.paths = {inode.nid: path.decode() for path, inode in self.bootstrap.walk()}
        self.names = Names()
        self.names.with_bootstrap(self.bootstrap)

    def files(self, path: str, *names: bytes) -> list[str]:
        """What a file at ``path`` means by ``names``."""
        directory = self.bootstrap.lookup(path.rpartition("/")[0] or "/").nid
        kind = kind_of(path.rpartition("/")[2].encode())
        return [self.paths[nid] for nid in self.names.files(list(names), directory, kind)]


TOP = "/usr/lib/python3"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> _Image:
    files = {f"{TOP[1:]}/{name}": "" for name in LIBRARY} | OTHERS
    return _Image(tmp_path_factory.mktemp("names"), files)


@pytest.fixture(autouse=True)
def _fresh(image: _Image) -> None:
    image.names = Names()
    image.names.with_bootstrap(image.bootstrap)


def test_compiled_modules_are_taken_for_their_sources(image: _Image) -> None:
    own = f"{TOP}/json/__pycache__/__init__.cpython-311.pyc"
    assert image.files(own, b"./decoder") == [f"{TOP}/json/__pycache__/decoder.cpython-311.pyc"]
    assert image.files(own, b"string") == [f"{TOP}/__pycache__/string.cpython-311.pyc"]
    assert image.files(own, b"data", b"only", b"nowhere", b"../data") == []


def test_of_a_program_that_reads_sources_they_are_sources(image: _Image) -> None:
    compiled, source = (
        [f"{TOP}/json/{name}"] for name in ("__pycache__/decoder.cpython-311.pyc", "decoder.py")
    )
    assert image.files(f"{TOP}/json/__init__.py", b"./decoder") == compiled
    assert image.files(f"{TOP}/json/__init__.py", b"./decoder") == compiled
    assert image.files(f"{TOP}/json/__init__.py", b"./decoder") == source
    assert image.files(f"{TOP}/string.py", b"only", b"json/decoder") == [
        f"{TOP}/only.py", *source,
    ]  # fmt: skip


def test_names_of_packages_bring_what_is_read_of_them(image: _Image) -> None:
    own = f"{TOP}/__pycache__/string.cpython-311.pyc"
    assert image.files(own, b"json") == [f"{TOP}/json/__pycache__/__init__.cpython-311.pyc"]
    assert image.files(own, b"json/decoder") == [f"{TOP}/json/__pycache__/decoder.cpython-311.pyc"]
    assert image.files(own, b"_ssl") == [f"{TOP}/lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so"]


def test_a_library_is_known_to_a_script_elsewhere_once_it_is_read(image: _Image) -> None:
    assert image.files("/opt/app/main.py", b"helper", b"string") == ["/opt/app/helper.py"]
    image.files(f"{TOP}/__pycache__/string.cpython-311.pyc", b"json")
    assert image.files("/opt/app/main.py", b"string") == [
        f"{TOP}/__pycache__/string.cpython-311.pyc"
    ]


def test_paths_and_packages_of_other_languages(image: _Image) -> None:
    own = "/srv/app/index.js"
    assert image.files(own, b"./lib/util") == ["/srv/app/lib/util.js"]
    assert image.files(own, b"left") == ["/srv/app/node_modules/left/index.js"]
    assert image.files(own, b"../../../etc/../x", b"../../../../..") == []
    assert image.files("/bin/tool", b"/etc/profile", b"/etc", b"/nowhere/x") == ["/etc/profile"]


def test_what_is_kept_of_directories_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "MOST_DIRECTORIES", 8)
    monkeypatch.setattr(names_module, "MOST_KNOWN", 16)
    image = _Image(tmp_path, {f"app/p{i}/m{i}.py": "" for i in range(40)})
    for i in range(40):
        found = image.files("/app/main.py", f"p{i}/m{i}".encode(), f"x{i}".encode())
        assert found == [f"/app/p{i}/m{i}.py"]
        assert len(image.names._directories) <= 8
        assert len(image.names._known) <= 16


def test_a_large_directory_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "LARGEST", 200)
    image: Any = _Image(tmp_path, {f"app/module{i}.py": "" for i in range(40)})
    assert image.files("/app/main.py", b"module3") == []
