"""Images of our own builder, by its command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NYDUS_IMAGE = [sys.executable, "-m", "rafs_v6.cli"]


def build_image(
    tree: Path, contents: Mapping[str, bytes], *options: str | Path, stdin: str = ""
) -> None:
    """Write files to ``tree``, a new directory, and run ``create`` on it."""
    for name, data in contents.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    create(*options, tree, stdin=stdin)


def create(*options: str | Path, stdin: str = "") -> None:
    subprocess.run(
        [*NYDUS_IMAGE, "create", *options],
        input=stdin, text=True, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
