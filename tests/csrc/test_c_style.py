"""Our C compiles without a warning, fuzz targets included."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(CSRC.glob("**/*.c"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_no_warnings(source: Path) -> None:
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    flags += [f"-I{CSRC / room}" for room in ("codec", "writer", "core", "test")]
    run = subprocess.run(["gcc", *flags, str(source)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
