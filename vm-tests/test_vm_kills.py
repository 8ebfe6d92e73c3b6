"""Over cachefiles the death of service and keeper costs readers a pause, never a byte; on kernels
without ``restore`` too.

NYDUS_TEST_KEEPER_KILLS=20 for the long run (5 of each kernel are the default).
"""

from __future__ import annotations

from collections.abc import Callable

import faults
import kills
import pytest

SCRIPT = "kills.py"


@pytest.mark.parametrize("name", [*kills.CHECKS, *faults.CHECKS, *kills.OLD_CHECKS])
def test_in_the_machine(assert_check: Callable[[str], None], name: str) -> None:
    assert_check(name)
