"""The keeper is small: it loads what the interpreter has, and two files of ours."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nydus_fscache.handover import keeper

HERE = Path(keeper.__file__).parent
ITS_FILES = ("start_keeper", "keeper", "fail_pending", "systemd")
# extension modules and the few of Python that every start of the interpreter loads
SMALL = {
    "_signal", "_socket", "_struct", "errno", "fcntl", "mmap", "os", "select", "sys", "time",
}  # fmt: skip
OURS = {f"nydus_fscache.handover.{name}" for name in ITS_FILES}


@pytest.mark.parametrize("name", ITS_FILES)
def test_imports(name: str) -> None:
    taken: set[str] = set()
    for node in ast.walk(ast.parse((HERE / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            taken |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            taken.add(str(node.module))
    assert taken <= SMALL | OURS


def test_what_is_loaded(tmp_path: Path) -> None:
    """Run as it is run: no package of ours brings anything along."""
    code = f"import runpy, sys\nsys.argv = ['keeper']\nrunpy.run_path({keeper.__file__!r})\n"
    code += "import nydus_fscache.handover.fail_pending\nprint('\\n'.join(sys.modules))"
    path = f"import sys\nsys.path.append({os.fspath(HERE.parents[1])!r})\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", path + code],
        capture_output=True, text=True, timeout=30, check=True, cwd=tmp_path,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    heavy = {"logging", "threading", "socket", "json", "ctypes", "subprocess", "pathlib"}
    assert not loaded & heavy
    assert {name for name in loaded if name.startswith("nydus_fscache.")} <= OURS | {
        "nydus_fscache.handover"
    }
