"""On kernels of Debian as they are, images are served over FUSE: lazily, and over kills."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import machine
import pytest
import stock
from trees import GOLDEN

pytestmark = pytest.mark.long
HERE = Path(__file__).resolve().parent
FETCH_S = 600
LIMIT_S = 5400  # of a machine; on an idle one it takes a fraction
# by metapackage; shapes in the order in which `auto` takes them
KERNELS = {
    "linux-image-cloud-amd64": ("fuse-loop", "fuse-tree"),
    "linux-image-6.12-cloud-amd64": ("fuse-file", "fuse-loop", "fuse-tree"),
}


def _fetch(meta: str) -> Path:
    done = subprocess.run(
        [str(HERE / "stock"), meta], capture_output=True, text=True, timeout=FETCH_S, check=False
    )
    if done.returncode == 77:
        pytest.skip(f"NO {meta}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def consoles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """What the machine of a metapackage printed; each is booted when it is first asked for."""
    if not (GOLDEN / "images").is_dir():
        pytest.skip(f"NO GOLDEN IMAGES in {GOLDEN}: kernels of distributions are not tested")
    if reason := machine.missing():
        pytest.skip(f"NO VIRTUAL MACHINE: {reason}")
    if os.geteuid() != 0:
        pytest.skip("NO VIRTUAL MACHINE: virtiofsd needs root")
    seen = [HERE.parent, GOLDEN, Path(sys.prefix), Path(sys.base_prefix)]
    running: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(1) as pool:

        def console(meta: str) -> str:
            if meta not in running:
                words = [str(HERE / "guest" / "stock.py"), *KERNELS[meta]]
                work = tmp_path_factory.mktemp("vm")
                running[meta] = pool.submit(
                    machine.run, _fetch(meta), work, words, seen, LIMIT_S
                )
            return running[meta].result()

        yield console


CHECKS = [(meta, name) for meta, shapes in KERNELS.items() for name in stock.checks_of(shapes)]


@pytest.mark.parametrize(("meta", "name"), CHECKS)
def test_in_the_machine(consoles: Callable[[str], str], meta: str, name: str) -> None:
    console = consoles(meta)
    outcome = machine.outcomes(console).get(name)
    assert outcome is not None, f"{name} did not report\n{console[-6000:]}"
    assert outcome.ok, f"{outcome.detail}\n{console[-3000:]}"
    print(f"{name}: {outcome.detail}")
