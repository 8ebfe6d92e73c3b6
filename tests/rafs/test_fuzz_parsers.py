"""scripts/fuzz_parsers.py still builds its seeds and finds nothing, for each of its targets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "scripts/fuzz_parsers.py"


@pytest.mark.parametrize("target", ["bootstrap", "toc", "layer", "manifest", "tar"])
def test_a_few_runs(target: str) -> None:
    done = subprocess.run(
        [sys.executable, FUZZ, "--runs", "60", "--seed", "7", target],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target}: " in done.stdout
