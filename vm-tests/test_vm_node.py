"""A node that boots by systemd with our package: mounted by fstab, killed, rebooted, read again."""

from __future__ import annotations

from pathlib import Path

import machine
import node
import node_machine
import pytest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def console(kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return node_machine.run(kernel, tmp_path_factory.mktemp("node"))


@pytest.mark.parametrize("name", node.CHECKS)
def test_in_the_machine(console: str, name: str) -> None:
    outcome = machine.outcomes(console).get(name)
    assert outcome is not None, f"{name} did not report\n{console[-6000:]}"
    assert outcome.ok, f"{outcome.detail}\n{console[-3000:]}"
    print(f"{name}: {outcome.detail}")
