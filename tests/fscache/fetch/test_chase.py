"""Which files come when a module that imports them has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from built import build_image

import rafs_v6
from nydus_fscache.fetch import chase as chase_module
from nydus_fscache.fetch.chase import Chase, said_by
from rafs_v6.reader.blobs import directory_blobs

MODULES = {
    "app/main.py": b"import first\n",
    "app/first.py": b"import second, third\n",
    "app/second.py": b"import fourth\n",
    "app/third.py": b"",
    "app/fourth.py": b"import library\n",
    "app/alone.py": b"pass\n",
    "app/library.so": bytes(range(256)) * 600,
}


class _Object:
    """As much of a cache object as a chase uses."""

    def __init__(self, base: Path, modules: Mapping[str, bytes]) -> None:
        padded = {n: d + b"#" * (900 - len(d) % 900) for n, d in modules.items()}
        build_image(
            base / "tree", padded, "-t", "dir-rafs", "-B", base / "boot", "-D", base,
            "--chunk-size", "0x10000",
        )  # fmt: skip
        self.bootstrap = rafs_v6.Bootstrap.from_file(base / "boot")
        (info,) = self.bootstrap.blobs
        size = (base / info.blob_id).stat().st_size
        self.chunks = rafs_v6.ChunkMap.load(
            info, directory_blobs(base).read_at, self.bootstrap, blob_size=lambda _: size
        )
        self.source = SimpleNamespace(blob_id=info.blob_id)
        self.kinds: Sequence[int] = ()
        self.here: set[int] = set()
        self.looked_at: list[int] = []
        self.named: list[int] = []
        self.programs: list[int] = []
        self._padded = padded
        self.unit = {
            name: next(iter(self.chunks.units_of(ref.flat_off, ref.size)))
            for name in padded
            for ref in list(self.bootstrap.chunks(self.bootstrap.lookup(f"/{name}")))[:1]
        }
        self._name = {unit: name for name, unit in self.unit.items()}

    def names(self, units: Sequence[int]) -> list[str]:
        return [Path(self._name[unit]).stem for unit in units]

    def expect_kinds(self) -> None:
        self.is_expecting = True

    def know_kinds(self, kinds: Sequence[int]) -> None:
        self.kinds = kinds

    def is_present(self, unit: int) -> bool:
        return unit in self.here

    def size(self, unit: int) -> int:
        return 1000

    def read(self, off: int, length: int) -> bytes:
        (unit,) = self.chunks.units_of(off, length)
        self.looked_at.append(unit)
        return self._padded[self._name[unit]]

    def load_named(self, units: Sequence[int]) -> None:
        self.named += units

    def load_program(self, units: Sequence[int]) -> None:
        self.programs.append(units[0])


def _follow(obj: Any, chase: Chase, *names: str) -> None:
    chase.follow(obj.bootstrap, deque((obj, obj.unit[f"app/{name}.py"]) for name in names))


def _chase(obj: Any) -> Chase:
    chase = Chase([obj])
    chase.know(obj.bootstrap)
    return chase


def test_a_module_brings_what_it_imports_and_what_that_imports_if_it_is_here(
    tmp_path: Path,
) -> None:
    obj = _Object(tmp_path, MODULES)
    chase = _chase(obj)
    assert len(obj.kinds) == obj.chunks.nunits
    obj.here = {obj.unit["app/first.py"]}
    _follow(obj, chase, "main")
    assert obj.names(obj.named) == ["second", "third"]
    _follow(obj, chase, "second")
    assert obj.names(obj.named) == ["second", "third", "fourth"]
    _follow(obj, chase, "fourth")
    assert obj.names(obj.programs) == ["library"]
    assert obj.names(obj.named) == ["second", "third", "fourth"]


def test_each_module_is_looked_at_once(tmp_path: Path) -> None:
    circle = {"app/a.py": b"import b\n", "app/b.py": b"import a\nfrom . import b\n"}
    obj = _Object(tmp_path, circle)
    chase = _chase(obj)
    obj.here = set(obj.unit.values())
    for _ in range(3):
        _follow(obj, chase, "a", "b")
    assert sorted(obj.looked_at) == sorted(obj.here)
    assert not obj.named


def test_a_reader_of_everything_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chase_module, "AT_ONCE", 3)
    monkeypatch.setattr(chase_module, "PER_SECOND", 0)
    obj = _Object(tmp_path, {f"app/m{i}.py": b"import x%d\n" % i for i in range(10)})
    chase = _chase(obj)
    _follow(obj, chase, *(f"m{i}" for i in range(10)))
    assert len(obj.looked_at) == 3


def test_large_files_and_blobs_of_too_many_chunks_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = _Object(tmp_path, MODULES)
    chase = _chase(obj)
    monkeypatch.setattr(chase_module, "LARGEST", 100)
    _follow(obj, chase, "main")
    assert not obj.looked_at
    monkeypatch.setattr(chase_module, "LARGEST", 1 << 18)
    monkeypatch.setattr(chase_module, "MOST_CHUNKS", 1)
    chase = _chase(obj)
    _follow(obj, chase, "main")
    assert not obj.looked_at


def test_what_a_start_leaves_is_bounded_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chase_module, "MOST_LOOKED_AT", 4)
    obj = _Object(tmp_path, {f"app/m{i}.py": b"import x%d\n" % i for i in range(10)})
    chase = _chase(obj)
    _follow(obj, chase, *(f"m{i}" for i in range(10)))
    assert len(obj.looked_at) == 4
    assert not chase.may_rest()
    chase.rest()
    assert chase._names.holds
    monkeypatch.setattr(chase_module, "IDLE_S", -1)
    assert chase.may_rest()
    chase.rest()
    assert not chase._names.holds
    assert not chase.may_rest()


def _command(obj: Any, chase: Chase, *words: bytes, cwd: bytes = b"/") -> deque[tuple[Any, int]]:
    modules: deque[tuple[Any, int]] = deque()
    chase.command(obj.bootstrap, words, cwd, modules)
    return modules


def test_the_script_of_a_reader_comes_before_it_is_asked_for(tmp_path: Path) -> None:
    obj = _Object(tmp_path, MODULES)
    chase = _chase(obj)
    assert not _command(obj, chase, b"/usr/bin/python3", b"/app/main.py", b"--flag", b"/nowhere")
    assert obj.names(obj.named) == ["main"]
    obj.here = {obj.unit["app/alone.py"]}
    assert _command(obj, chase, b"python3", b"alone.py", cwd=b"/app") == deque(
        [(obj, obj.unit["app/alone.py"])]
    )
    assert obj.names(obj.named) == ["main"]


def test_modules_of_a_command_line_come_when_it_is_known_where_modules_are(
    tmp_path: Path,
) -> None:
    obj = _Object(tmp_path, MODULES)
    chase = _chase(obj)
    _command(obj, chase, b"python3", b"-c", b"import first, nowhere; print(third)")
    _command(obj, chase, b"python3", b"-m", b"third")
    assert not obj.named
    _follow(obj, chase, "alone")
    assert obj.names(obj.named) == ["first", "third"]


def test_only_so_many_command_lines_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chase_module, "MOST_COMMANDS", 2)
    obj = _Object(tmp_path, MODULES)
    chase = _chase(obj)
    for name in (b"first", b"first", b"second", b"third"):
        _command(obj, chase, b"/app/%s.py" % name)
    assert obj.names(obj.named) == ["first", "second"]


def test_a_command_line_full_of_names_is_sought_so_far(tmp_path: Path) -> None:
    obj = _Object(tmp_path, {f"app/m{i}.py": b"import x%d\n" % i for i in range(30)})
    chase = _chase(obj)
    for number in range(4):
        many = ";".join(f"import many{number}_{i}" for i in range(200))
        _command(obj, chase, b"python3", b"-c", many.encode())
    assert len(chase._said) == chase_module.MOST_SAID
    for i in range(30):
        chase._roots = [i]  # as if modules had been read elsewhere
        _follow(obj, chase, f"m{i}")
    assert chase._sought == chase_module.MOST_SOUGHT


def test_words_of_a_command_line() -> None:
    words = [b"node", b"--inspect", b"server.js", b"/etc/app.conf", b"-m", b"http.server"]
    paths, names = said_by([*words, b"x" * 300], b"/srv")
    assert paths == [b"/srv/node", b"/srv/server.js", b"/etc/app.conf"]
    assert names == [b"http/server"]
    assert said_by([b"sh", b"-c", b"import os;import a.b\n. /etc/x"], b"/")[1] == [b"os", b"a/b"]
