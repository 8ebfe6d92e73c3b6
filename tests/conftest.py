"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The directory of the golden images, beside the checkout."""
    if not (GOLDEN / "images").is_dir():
        pytest.skip(f"NO GOLDEN IMAGES in {GOLDEN}: what only they can show is not tested")
    return GOLDEN
