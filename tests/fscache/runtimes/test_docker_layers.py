"""Layers of Docker's plugin: tars of strangers stay inside, whiteouts go in and come out."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from nydus_fscache.errors import BadImage
from nydus_fscache.runtimes.docker import pack
from nydus_fscache.runtimes.docker.unpack import OPAQUE_XATTR, unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no chroot")


def member(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def tar_of(*members: tarfile.TarInfo, data: bytes = b"data") -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one in members:
            if one.isreg():
                one.size = len(data)
            tar.addfile(one, io.BytesIO(data) if one.isreg() else None)
    out.seek(0)
    return out


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    made = tmp_path / "outer" / "layer"
    made.mkdir(parents=True)
    return made


def test_no_name_leads_out(layer: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    evil = tar_of(
        member("../../up"), member("/abs"),
        member("hard", type=tarfile.LNKTYPE, linkname="../../../up"),
    )  # fmt: skip
    assert unpack(evil, layer) == 2 * 4
    through = member("link", type=tarfile.SYMTYPE, linkname=str(outside))
    with pytest.raises(BadImage):  # to nowhere, as the layer sees it
        unpack(tar_of(through, member("link/through")), layer)
    assert list(outside.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["outer", "outside"]
    assert (layer / "up").read_bytes() == (layer / "abs").read_bytes() == b"data"


def test_whiteouts_in_and_out(layer: Path) -> None:
    unpack(
        tar_of(
            member("d", type=tarfile.DIRTYPE, mode=0o750, uid=5, gid=6, mtime=77),
            member("d/.wh..wh..opq"), member("d/new", mode=0o4755, uid=7,
                   pax_headers={"SCHILY.xattr.user.note": "x"}),
            member(".wh.gone"), member("fifo", type=tarfile.FIFOTYPE),
        ),
        layer,
    )  # fmt: skip
    assert stat.S_ISCHR((layer / "gone").lstat().st_mode)
    assert os.getxattr(layer / "d", OPAQUE_XATTR) == b"y"
    assert (layer / "d").stat().st_mtime == 77
    out = io.BytesIO()
    pack.pack(layer, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        found = {one.name: one for one in tar}
    assert set(found) == {"d", "d/.wh..wh..opq", "d/new", ".wh.gone", "fifo"}
    assert (found["d"].uid, found["d"].mode) == (5, 0o750)
    assert (found["d/new"].uid, found["d/new"].mode) == (7, 0o4755)
    assert found["d/new"].pax_headers["SCHILY.xattr.user.note"] == "x"
    below = layer.parent / "below"
    (below / "d").mkdir(parents=True)
    kinds = {one["Path"]: one["Kind"] for one in pack.changes(layer, [below])}
    assert kinds == {"/d": pack.MODIFIED, "/d/new": pack.ADDED, "/gone": pack.DELETED,
                     "/fifo": pack.ADDED}  # fmt: skip
    assert pack.size(layer) == 4


@pytest.mark.parametrize("data", [b"x" * 1000, tar_of(member("a")).getvalue()[:700]])
def test_a_damaged_tar_is_refused(layer: Path, data: bytes) -> None:
    with pytest.raises(BadImage, match="cannot be unpacked"):
        unpack(io.BytesIO(data), layer)
