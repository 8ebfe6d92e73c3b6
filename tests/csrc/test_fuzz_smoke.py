"""Every fuzz target survives its corpus and a few thousand new inputs; scripts/fuzz runs more."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = sorted(path.stem for path in (ROOT / "csrc" / "fuzz").glob("*.c"))
RUNS = 5000


def test_there_are_targets_with_corpora() -> None:
    assert TARGETS
    for target in TARGETS:
        assert any((ROOT / "tests" / "corpus" / target).iterdir())


def fuzz(target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "fuzz", "--runs", str(RUNS), target],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_target(target: str) -> None:
    if not shutil.which("clang"):
        pytest.skip("clang is not installed: THE C DECODERS ARE NOT FUZZED (apt-get install clang)")
    run = fuzz(target)
    assert run.returncode == 0, run.stderr
    said = re.search(rf"{target}: (\d+) executions, ok", run.stdout)
    assert said, run.stdout
    assert int(said[1]) >= RUNS


@pytest.mark.parametrize("target", ["bootstrap", "toc", "layer", "manifest", "tar"])
def test_parser_in_python(target: str) -> None:
    run = fuzz(target)
    assert run.returncode == 0, run.stdout + run.stderr
    said = re.fullmatch(rf"{target}: (\d+) executions, ok \((\d+) accepted\)", run.stdout.strip())
    assert said, run.stdout
    assert int(said[1]) >= RUNS
    assert int(said[2]) >= 1, "the seeds at least are valid"


def test_wrong_usage() -> None:
    for arguments in (["nothing-of-that-name"], ["--runs", "many"], ["--no-such-option"]):
        run = subprocess.run(
            [ROOT / "scripts" / "fuzz", *arguments], capture_output=True, text=True, check=False
        )
        assert run.returncode == 2
        assert run.stderr.startswith("fuzz: ")
