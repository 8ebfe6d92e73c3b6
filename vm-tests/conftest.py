"""Boots a virtual machine once for each script of guest/; tests then look at what it reported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import machine
import pytest
from trees import GOLDEN

HERE = Path(__file__).resolve().parent

KEEPER_KILLS = os.environ.get("NYDUS_TEST_KEEPER_KILLS", "5")
LIMIT_S = 900  # of a machine; on an idle one it takes a fraction


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
def consoles(
    kernel: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[str]]]:
    """By script, what a machine of its own printed.  All that are wanted run side by side."""
    items = request.session.items
    ours = [i.module for i in items if i.path.is_relative_to(HERE)]
    scripts = {module.SCRIPT for module in ours if hasattr(module, "SCRIPT")}
    seen = [HERE.parent, GOLDEN, Path(sys.prefix), Path(sys.base_prefix)]
    with ThreadPoolExecutor(max(1, len(scripts))) as pool:
        yield {
            script: pool.submit(
                machine.run,
                kernel,
                tmp_path_factory.mktemp("vm"),
                [str(HERE / "guest" / script), KEEPER_KILLS],
                seen,
                LIMIT_S,
            )
            for script in scripts
        }


@pytest.fixture
def assert_check(
    consoles: dict[str, Future[str]], request: pytest.FixtureRequest
) -> Callable[[str], None]:
    """Assert that a check of the module's script passed in its machine."""

    def assert_one(name: str) -> None:
        console = consoles[request.module.SCRIPT].result()
        outcome = machine.outcomes(console).get(name)
        assert outcome is not None, f"{name} did not report\n{console[-6000:]}"
        assert outcome.ok, f"{outcome.detail}\n{console[-3000:]}"
        print(f"{name}: {outcome.detail}")

    return assert_one
