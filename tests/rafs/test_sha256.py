"""SHA-256 by whichever way costs less, and always the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from rafs_v6 import sha256
from rafs_v6.sha256 import SMALL

SIZES = (0, 1, 4096, SMALL, SMALL + 1, 3 << 20)


@pytest.fixture(params=["own", "OpenSSL"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here OpenSSL has begun long ago."""
    if request.param == "own":
        if sha256._OWN is None:
            pytest.skip("NO _sha256: this interpreter has OpenSSL's alone")
        monkeypatch.delitem(sys.modules, "_hashlib")


@pytest.mark.parametrize("size", SIZES)
def test_it_is_sha256(way: None, tmp_path: Path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    wanted = hashlib.sha256(data).digest()
    assert sha256.sha256(data).digest() == wanted
    assert sha256.sha256(memoryview(data)).hexdigest() == wanted.hex()
    (tmp_path / "f").write_bytes(data)
    assert sha256.file_sha256(tmp_path / "f") == wanted.hex()
    told_wrong = sha256.hasher(0)
    told_wrong.update(data)
    assert told_wrong.digest() == wanted


STARVED = """
import resource, sys
sys.path[:0] = {path}
from rafs_v6._codec import ffi, lib
SHA256, out = 1, ffi.new("uint8_t[32]")
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
starved = lib.rafs_crypto_begin(), lib.rafs_digest(SHA256, b"x", 1, out)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
healed = lib.rafs_digest(SHA256, b"x", 1, out), lib.rafs_crypto_begin()
assert not [m for m in ("_hashlib", "_ssl") if m in sys.modules], "or it is here already"
print(all(starved), healed, bytes(out).hex())
"""


def test_openssl_that_could_not_be_loaded_is_loaded_later() -> None:
    """A process without a descriptor to spare would else verify nothing for the rest of its
    life."""
    done = subprocess.run(
        [sys.executable, "-c", STARVED.format(path=sys.path)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == f"True (0, 0) {hashlib.sha256(b'x').hexdigest()}\n"


CODE = """
import sys
from pathlib import Path
sys.path[:0] = {path}
from nydus_fscache import deferred
from nydus_fscache.image.bootstraps import Bootstraps
from nydus_fscache.image.image import image_key
from nydus_fscache.image.open_images import OpenImages
def began(): return getattr(sys.modules.get("_hashlib"), "__spec__", None) is not None
kept = Bootstraps(Path(sys.argv[1]))
data = bytes(200_000)
for _ in range(2):
    digest = kept.keep(len(data), lambda: [data])
image_key(digest, {{}})
print(began())
kept.keep(2 << 20, lambda: [bytes(2 << 20)])
print(began())
"""


def test_a_small_image_needs_no_openssl(tmp_path: Path) -> None:
    if sha256._OWN is None:
        pytest.skip("NO _sha256: this interpreter has OpenSSL's alone")
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(path=sys.path), tmp_path],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "True"]
