"""Over cachefiles every golden image shows its tree, is loaded lazily, shared and kept, and what no
mount uses is culled."""

from __future__ import annotations

from collections.abc import Callable

import culls
import images
import pytest

SCRIPT = "images.py"


@pytest.mark.parametrize("name", [*images.CHECKS, *culls.CHECKS])
def test_in_the_machine(assert_check: Callable[[str], None], name: str) -> None:
    assert_check(name)
