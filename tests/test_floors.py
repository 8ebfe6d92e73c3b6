"""Imports and calls run downwards, and never in a circle.

``ORDER`` lists the rooms of each package from the roof down.  A file may use its own room and
those below.  Imports under ``TYPE_CHECKING`` and within functions count: a name that is taken
is a dependency.  C has no imports, so there the symbols that one object file takes from another
are looked at (``nm``).
"""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = {
    "rafs_v6": (
        "cli", "tools", "writer", "__init__", "validate", "reader", "format", "faults", "errors",
        "values", "sha256", "deferred",
        "_writer", "_codec",
    ),
    "nydus_fscache": (
        "__main__", "cli", "convert", "runtimes", "daemon", "api", "handover", "transport", "fetch",
        "cache", "image", "backend", "registry", "http", "core", "config", "kernel", "files", "log",
        "errors", "deferred", "_core", "__init__",
    ),
}  # fmt: skip
C_ORDER = ("writer", "core", "codec")


@dataclass(frozen=True)
class Use:
    """``taker`` takes ``name`` out of ``giver``; both are paths below the checkout."""

    taker: str
    giver: str
    name: str

    def __str__(self) -> str:
        return f"{self.taker} takes {self.name} from {self.giver}"


def module_file(name: str) -> str | None:
    """The file of a module of ours, or None when there is no such module."""
    path = ROOT / name.replace(".", "/")
    for file in (path / "__init__.py", path.with_suffix(".py"), path.with_suffix(".pyi")):
        if file.is_file():
            return str(file.relative_to(ROOT))
    return None


def uses_of(file: Path) -> list[Use]:
    taker = str(file.relative_to(ROOT))
    found: list[Use] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if module.split(".")[0] not in ORDER:
                continue
            inner = module_file(f"{module}.{name}") if name else None
            giver = inner or module_file(module)
            assert giver, f"{taker} imports {module}, which does not exist"
            if giver != taker:
                found.append(Use(taker, giver, name or module))
    return found


def python_uses() -> list[Use]:
    return [
        use for package in ORDER for file in sorted((ROOT / package).rglob("*.py"))
        for use in uses_of(file)
    ]  # fmt: skip


def floor(path: str) -> tuple[str, int]:
    package, room = path.split("/")[:2]
    room = room.partition(".")[0]
    assert room in ORDER[package], f"{path}: the room {room} has no place in ORDER"
    return package, ORDER[package].index(room)


def uphill(uses: list[Use]) -> list[str]:
    wrong = []
    for use in uses:
        (package, taker), (other, giver) = floor(use.taker), floor(use.giver)
        # The daemon stands on the library, and may use what the library promises and its rooms.
        if (package == other and giver < taker) or (package == "rafs_v6" and other != package):
            wrong.append(str(use))
    return wrong


def circle(uses: list[Use]) -> list[str]:
    graph: dict[str, set[str]] = defaultdict(set)
    for use in uses:
        graph[use.taker].add(use.giver)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        ring = list(reversed(error.args[1]))
        return [
            str(next(use for use in uses if (use.taker, use.giver) == pair))
            for pair in pairwise(ring)
        ]
    return []


def test_no_import_runs_uphill() -> None:
    wrong = uphill(python_uses())
    assert not wrong, "\n".join(wrong)


def test_no_circle_between_python_files() -> None:
    assert circle(python_uses()) == []


def test_only_promised_rooms_of_the_library_are_its_face() -> None:
    """The library's own rooms do not import its face, which would load all of it."""
    wrong = [
        str(use) for use in python_uses()
        if use.giver == "rafs_v6/__init__.py"
        and use.taker.startswith(("rafs_v6/reader/", "rafs_v6/format/", "rafs_v6/validate"))
    ]  # fmt: skip
    assert wrong == []


@pytest.fixture(scope="module")
def c_uses(tmp_path_factory: pytest.TempPathFactory) -> list[Use]:
    if not shutil.which("nm"):
        pytest.skip("NO nm: the calls between C files are not checked (apt-get install binutils)")
    out = tmp_path_factory.mktemp("objects")
    sources = [file for room in C_ORDER for file in sorted((ROOT / "csrc" / room).glob("*.c"))]
    includes = [f"-I{ROOT / 'csrc' / room}" for room in C_ORDER]
    defined: dict[str, str] = {}
    taken: dict[str, list[str]] = {}
    for source in sources:
        name, target = str(source.relative_to(ROOT)), out / f"{source.parent.name}-{source.stem}.o"
        command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O0", *includes, "-c", source, "-o"]
        subprocess.run([*command, target], check=True)
        table = subprocess.run(["nm", target], check=True, capture_output=True, text=True).stdout
        words = [line.split()[-2:] for line in table.splitlines()]
        taken[name] = [symbol for kind, symbol in words if kind == "U"]
        defined.update({symbol: name for kind, symbol in words if kind in "TDBRC"})
    return [
        Use(taker, defined[symbol], symbol)
        for taker, symbols in taken.items() for symbol in symbols
        if symbol in defined and defined[symbol] != taker
    ]  # fmt: skip


def test_no_circle_between_c_files(c_uses: list[Use]) -> None:
    assert circle(c_uses) == []


def test_c_rooms_use_the_codecs_and_not_each_other(c_uses: list[Use]) -> None:
    wrong = [
        str(use) for use in c_uses
        if (giver := use.giver.split("/")[1]) not in (use.taker.split("/")[1], "codec")
        or (giver != "codec" and use.taker.split("/")[1] == "codec")
    ]  # fmt: skip
    assert wrong == []


def test_the_test_itself_sees_an_uphill_import_and_a_circle() -> None:
    up = Use("nydus_fscache/cache/store.py", "nydus_fscache/daemon/service.py", "Service")
    assert uphill([up]) == [
        "nydus_fscache/cache/store.py takes Service from nydus_fscache/daemon/service.py"
    ]
    down = Use(up.giver, up.taker, "Store")
    assert uphill([down]) == []
    assert sorted(circle([up, down])) == sorted([str(up), str(down)])
