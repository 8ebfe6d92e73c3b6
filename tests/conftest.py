"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "golden"
GOLDEN = Path(os.environ.get("NYDUS_GOLDEN", BESIDE))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The directory of the golden images, beside the checkout."""
    if not (GOLDEN / "images").is_dir():
        pytest.skip(f"NO GOLDEN IMAGES in {GOLDEN}: this is not tested; set NYDUS_GOLDEN")
    return GOLDEN
