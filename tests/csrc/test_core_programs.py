"""The C core without root and without a kernel interface: one program a behaviour (csrc/test), over
a fake transport, under the address and undefined behaviour sanitizers and under that of threads."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import core_programs
import pytest

CANNOT_RUN = 77
LIMIT_S = 120


@pytest.fixture(scope="module", params=list(core_programs.SANITIZERS))
def built(request: pytest.FixtureRequest) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("NO gcc: the C core's own tests do not run (apt-get install gcc)")
    return core_programs.build(request.param)


@pytest.mark.parametrize("name", core_programs.programs())
def test_program(built: Path, name: str) -> None:
    # setarch: the shadow memory of the thread sanitizer has no place under some layouts
    done = subprocess.run(
        ["setarch", "-R", built / name],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        check=False,
    )
    if done.returncode == CANNOT_RUN:
        pytest.skip(f"{name} CANNOT RUN here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
