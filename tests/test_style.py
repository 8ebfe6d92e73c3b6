"""The linter and the strict type checker have nothing to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "ruff": ["ruff", "check", "."],
    "mypy": ["mypy"],
}


@pytest.mark.parametrize("tool", COMMANDS)
def test_nothing_to_say(tool: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *COMMANDS[tool]],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout + run.stderr
