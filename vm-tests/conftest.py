"""Boots a virtual machine once for each script of guest/; tests then look at what it reported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import machine
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "guest"), str(HERE.parent / "tests" / "daemon")]

from trees import GOLDEN  # noqa: E402

LIMIT_S = 600  # of one machine; on an idle one it takes a fraction


@pytest.fixture(scope="session")
def kernel() -> Path:
    """The directory of the built kernel."""
    if not (GOLDEN / "images").is_dir():
        pytest.skip(f"NO GOLDEN IMAGES in {GOLDEN}: cachefiles is not tested")
    if reason := machine.missing():
        pytest.skip(f"NO VIRTUAL MACHINE, cachefiles is not tested: {reason}")
    if os.geteuid() != 0:
        pytest.skip("NO VIRTUAL MACHINE, cachefiles is not tested: virtiofsd needs root")
    path, reason = machine.build()
    if path is None:
        pytest.skip(f"NO KERNEL for the virtual machine, cachefiles is not tested: {reason}")
    return path


@pytest.fixture(scope="session")
def assert_check(
    kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], None]:
    """Assert that a check of a script passed in the machine; the first call boots it."""
    consoles: dict[str, str] = {}

    def assert_one(script: str, name: str) -> None:
        if script not in consoles:
            work = tmp_path_factory.mktemp("vm")
            seen = [HERE.parent, GOLDEN, Path(sys.prefix), Path(sys.base_prefix)]
            consoles[script] = machine.run(kernel, work, HERE / "guest" / script, seen, LIMIT_S)
        console = consoles[script]
        outcome = machine.outcomes(console).get(name)
        assert outcome is not None, f"{name} did not report\n{console[-6000:]}"
        assert outcome.ok, f"{outcome.detail}\n{console[-3000:]}"
        print(f"{name}: {outcome.detail}")

    return assert_one
