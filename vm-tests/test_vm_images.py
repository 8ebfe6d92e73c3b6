"""Over cachefiles every golden image shows its tree, is loaded lazily, shared and kept."""

from __future__ import annotations

from collections.abc import Callable

import images
import pytest

SCRIPT = "images.py"


@pytest.mark.parametrize("name", images.CHECKS)
def test_in_the_machine(assert_check: Callable[[str], None], name: str) -> None:
    assert_check(name)
