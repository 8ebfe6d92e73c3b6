"""Over cachefiles ``nydusd singleton`` answers the snapshotter's sequence of calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import singleton

SCRIPT = "singleton.py"


@pytest.mark.parametrize("name", singleton.CHECKS)
def test_in_the_machine(assert_check: Callable[[str], None], name: str) -> None:
    assert_check(name)
