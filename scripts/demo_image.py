"""The image of ``scripts/run``: a golden one, or one that is made from files of this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
GOLDEN = CHECKOUT.parent / "shared" / "golden" / "images" / "layers-zstd"
# Not needed to run a program, and large or full of links that lead elsewhere.
_LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "idlelib", "ensurepip", "dist-packages", "site-packages", "config-*",
    "*.a", "sitecustomize.py",
)  # fmt: skip
_MAIN = """\
import json, sys
print(json.dumps({"hello from": sys.executable, "python": sys.version.split()[0]}), flush=True)
"""


@dataclass(frozen=True)
class Image:
    name: str
    bootstrap: Path
    blobs: Path
    program: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def size(self) -> int:
        """What a pull of the whole image would bring: bootstrap and compressed blobs."""
        return self.bootstrap.stat().st_size + sum(p.stat().st_size for p in self.blobs.iterdir())


def golden_image() -> Image:
    program = ["/usr/bin/python3.11", "/app/main.py"]
    return Image("layers-zstd (golden)", GOLDEN / "image.boot", GOLDEN / "blobs", program)


def built_image(work: Path) -> Image:
    """Python as it is installed here, in an image of our own ``nydus-image create``."""
    tree, blobs, bootstrap = work / "tree", work / "blobs", work / "image.boot"
    python = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    libraries = _libraries([python, *standard.glob("lib-dynload/*.so")])
    shutil.copytree(standard, _below(tree, standard), ignore=_LEFT_OUT)
    for path in {python, *libraries}:
        target = _below(tree, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tree / "app").mkdir()
    (tree / "app" / "main.py").write_text(_MAIN)
    blobs.mkdir()
    subprocess.run(
        [
            Path(sys.executable).with_name("nydus-image"), "create", tree,
            "--bootstrap", bootstrap, "--blob-dir", blobs,
        ],
        check=True, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    shutil.rmtree(tree)
    return Image(
        f"Python {sys.version.split()[0]} of this machine (nydus-image create)",
        bootstrap,
        blobs,
        [str(python), "-I", "/app/main.py"],
        # there is no cache of the loader in the image
        {"LD_LIBRARY_PATH": ":".join(sorted({str(path.parent) for path in libraries}))},
    )


def _below(tree: Path, path: Path) -> Path:
    return tree / path.relative_to("/")


def _libraries(programs: list[Path]) -> set[Path]:
    """What the loader would map for these, under the names by which it asks for them."""
    listed = subprocess.run(
        ["ldd", *programs], capture_output=True, text=True, check=True, start_new_session=True
    )
    return {Path(name) for name in re.findall(r"(?:^|=>)\s+(/[^\s:]+) \(0x", listed.stdout, re.M)}
