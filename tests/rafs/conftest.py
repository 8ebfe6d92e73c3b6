"""What only the tests of the builder need: the golden layers, and the original."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def layers(golden: Path) -> list[Path]:
    """The golden layers 1 to 3 as tar.gz."""
    blobs = golden / "images" / "layers-zran" / "blobs"
    return [next(blobs.glob(f"{start}*")) for start in ("2ac888", "9640c4", "bde919")]


@pytest.fixture(scope="session")
def original() -> Path:
    """The original's nydus-image."""
    named = os.environ.get("NYDUS_REAL_IMAGE") or shutil.which("nydus-image")
    if not named or "venv" in named:
        pytest.skip("NO ORIGINAL nydus-image: not compared with it; set NYDUS_REAL_IMAGE")
    return Path(named)
