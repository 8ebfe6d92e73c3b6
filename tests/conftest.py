"""Fixtures of all tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "golden"
GOLDEN = Path(os.environ.get("NYDUS_GOLDEN", BESIDE))


CLONE_NEWNS, MS_REC, MS_SLAVE = 0x20000, 0x4000, 0x80000


def pytest_configure() -> None:
    """Mounts of the tests are in a namespace of their own: a process that copies the machine's
    mount table meanwhile (a unit with PrivateTmp=, a container) would hold them after their umount.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(OSError):
        if os.geteuid() == 0 and libc.unshare(CLONE_NEWNS) == 0:
            libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("NYDUS_TEST_LONG"):
        return
    skip = pytest.mark.skip(reason="LONG: NOT TESTED IN A SHORT RUN: scripts/test --long does")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The directory of the golden images, beside the checkout."""
    if not (GOLDEN / "images").is_dir():
        pytest.skip(f"NO GOLDEN IMAGES in {GOLDEN}: this is not tested; set NYDUS_GOLDEN")
    return GOLDEN
