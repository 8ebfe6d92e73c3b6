"""Commands import what they need: most of the time of a small one is imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Without what sites import before any program (``-S``): that differs from one to the next.
_CODE = f"""\
import sys
before = set(sys.modules)
sys.path[:0] = {[p for p in sys.path if p]}
from nydus_fscache.cli.nydus_image import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*(m for m in sys.modules if m not in before))
"""


def _modules(*argv: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", _CODE, *argv], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_a_version_needs_no_builder() -> None:
    found = _modules("--version")
    heavy = {"rafs_v6._writer", "rafs_v6._codec", "hashlib", "json", "tempfile"}
    assert not found & {*heavy, "importlib.metadata", "dataclasses", "rafs_v6.format.erofs"}
    assert not [name for name in found if name.startswith("nydus_fscache.backend")]
    assert not found & {"shutil", "lzma", "bz2"}
    assert len(found) <= 61, sorted(found)


def test_an_image_of_a_directory_needs_neither_tars_nor_readers(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_bytes(b"x")
    found = _modules("create", "-B", str(tmp_path / "boot"), "-D", str(tmp_path), str(tree))
    assert (tmp_path / "boot").exists()
    assert not found & {"json", "tarfile", "tempfile", "importlib.metadata", "socket", "ssl"}
    assert not found & {"shutil", "lzma", "bz2", "secrets", "random", "base64"}
    assert len(found) <= 119, sorted(found)
    prefixes = ("rafs_v6.reader", "rafs_v6.writer.sources.tar", "nydus_fscache.backend")
    assert not [name for name in found if name.startswith(prefixes)]
