"""Over cachefiles the death of the service costs readers a pause, never a byte."""

from __future__ import annotations

from collections.abc import Callable

import kills
import pytest


@pytest.mark.parametrize("name", kills.CHECKS)
def test_in_the_machine(assert_check: Callable[[str, str], None], name: str) -> None:
    assert_check("kills.py", name)
