"""A wheel in an empty environment, far from the sources: the commands and the library work.

Nothing is fetched: what the wheel needs is copied from the environment of the tests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "*.so", "*.egg-info", "__pycache__", "vm-tests"
)
_NEEDED_BY_ALL = ("cffi", "_cffi_backend", "pycparser")
_NEEDED_BY_DAEMON = ("requests", "urllib3", "idna", "certifi", "charset_normalizer")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, base / "source", ignore=_NOT_SOURCES)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
            "--no-index", "--no-deps", "--no-build-isolation", "-w", base / "out", base / "source",
        ],
        check=True,
        timeout=300,
    )  # fmt: skip
    shutil.rmtree(base / "source")
    return next((base / "out").glob("*.whl"))


def _environment(wheel: Path, where: Path, needed: tuple[str, ...]) -> Path:
    """Its bin directory."""
    venv.create(where, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", where / "bin/python", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True, timeout=120)
    (site,) = where.glob("lib/python*/site-packages")
    for name in needed:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, site / name)
        else:
            shutil.copy(origin, site)
    return where / "bin"


def _run(program: list[str | Path], cwd: Path) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    done = subprocess.run(
        program, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (program, done.stderr)
    return done.stdout


LIBRARY = """
import sys, rafs_v6
with rafs_v6.open("boot", blobs="blobs") as image:
    assert image.read(image.resolve("/link")) == b"data"
print(rafs_v6.__version__, rafs_v6.__file__)
assert not {"requests", "nydus_fscache"} & set(sys.modules)
"""


def test_the_library_alone(wheel: Path, tmp_path: Path) -> None:
    """Only cffi: how README installs it with ``--no-deps``."""
    bin_ = _environment(wheel, tmp_path / "env", _NEEDED_BY_ALL)
    (tmp_path / "tree").mkdir()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "tree/file").write_bytes(b"data")
    (tmp_path / "tree/link").symlink_to("file")
    python = bin_ / "python"
    _run([python, "-m", "rafs_v6.cli", "create", "-B", "boot", "-D", "blobs", "tree"], tmp_path)
    _run([python, "-m", "rafs_v6.cli", "check", "boot", "-D", "blobs"], tmp_path)
    version, file = _run([python, "-c", LIBRARY], tmp_path).split()
    assert file.startswith(str(tmp_path))
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_the_commands(wheel: Path, tmp_path: Path) -> None:
    bin_ = _environment(wheel, tmp_path / "env", (*_NEEDED_BY_ALL, *_NEEDED_BY_DAEMON))
    (tmp_path / "tree").mkdir()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "tree/file").write_bytes(b"data")
    _run([bin_ / "nydus-image", "create", "-B", "boot", "-D", "blobs", "tree"], tmp_path)
    _run([bin_ / "nydus-image", "check", "boot", "-D", "blobs"], tmp_path)
    assert "file" in _run([bin_ / "nydus-fscache", "ls", "boot"], tmp_path)
    assert _run(
        [bin_ / "nydus-fscache", "cat", "boot", "/file", "--blob-dir", "blobs"], tmp_path
    ) == "data"  # fmt: skip
    everything = (
        "import pkgutil, nydus_fscache, rafs_v6\n"
        "for package in (nydus_fscache, rafs_v6):\n"
        "    for m in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not m.name.endswith('__main__'):\n"
        "            __import__(m.name)\n"
    )
    _run([bin_ / "python", "-c", everything], tmp_path)
