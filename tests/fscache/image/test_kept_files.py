"""Bootstraps, metadata and traces are kept in bounds, the last used ones."""

from __future__ import annotations

import os
import time
from pathlib import Path

from nydus_fscache.image.kept_files import KEPT, collect


def _make(directory: Path, name: str, age_s: float) -> None:
    path = directory / name
    if name.endswith(".meta"):
        path.mkdir()
        (path / "blob.0.10").touch()
    else:
        path.touch()
    when = time.time() - age_s
    os.utime(path, (when, when))


def test_least_recently_used_images_go(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "used", "old", "oldest"), start=1):
        for suffix in ("boot", "trace"):
            _make(tmp_path, f"{name}.{suffix}", age * 3600)
    _make(tmp_path, "key.meta", 5 * 3600)
    _make(tmp_path, ".old.boot.new", 3600)
    _make(tmp_path, "begun.boot", 1)
    before = sorted(p.name for p in tmp_path.iterdir())
    would = collect(tmp_path, {"used"}, keep=3, dry_run=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert collect(tmp_path, {"used"}, keep=3) == would
    left = {p.name for p in tmp_path.iterdir()}
    assert left == set(before) - set(would)
    assert "used.boot" in left
    assert "begun.boot" in left
    assert "new.boot" in left
    assert {"key.meta", "oldest.boot", ".old.boot.new"} <= set(would)
    collect(tmp_path, {"used"}, keep=0)
    left = {p.name for p in tmp_path.iterdir()}
    traces = {f"{name}.trace" for name in ("new", "used", "old", "oldest")}
    assert left == {"begun.boot", "used.boot"} | traces


def test_traces_are_bounded(tmp_path: Path) -> None:
    for number in range(KEPT + 5):
        _make(tmp_path, f"i{number}.trace", 3600 + number)
    collect(tmp_path, set(), keep=0)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {f"i{n}.trace" for n in range(KEPT)}
