"""Headers of tars become members; nothing is dropped, and memory is bounded."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tar_kit import DIR, END, HARD, LINK, header_with, member, tar, with_gnu_times

from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.sources.tar_members import Member, members

GNU = tarfile.GNU_FORMAT


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data, self.pos = data, 0

    def read(self, length: int) -> bytes:
        data = self._data[self.pos : self.pos + length]
        self.pos += len(data)
        return data

    def skip_to(self, pos: int) -> None:
        self.pos = pos


def _members(data: bytes) -> list[Member]:
    return list(members(_Bytes(data)))


def _names(data: bytes) -> list[bytes]:
    return [m.name.rstrip(b"/") for m in _members(data)]


@pytest.mark.parametrize("time", [b"15302423010\0", b"00000000000\0"])
def test_gnu_times_are_not_a_prefix(time: bytes) -> None:
    data = tar(
        with_gnu_times(member("app", DIR, form=GNU), time),
        with_gnu_times(member("app/run", data=b"#!", form=GNU), time),
    )
    assert _names(data) == [b"app", b"app/run"]


def test_a_long_gnu_name_with_times() -> None:
    name = "d" * 60 + "/" + "n" * 80
    parts = member(name, data=b"x", form=GNU)
    record, entry = parts[:1024], parts[1024:]
    data = tar(with_gnu_times(record), with_gnu_times(entry))
    assert _names(data) == [name.encode()]


def test_a_ustar_prefix_counts_and_that_of_star_is_shorter() -> None:
    name = "a" * 80 + "/" + "b" * 60
    entry = member(name, form=tarfile.USTAR_FORMAT)
    assert _names(tar(entry)) == [name.encode()]
    star = header_with(entry[:512], {345 + 131: b"15302423010\0" * 2, 508: b"tar\0"})
    assert _names(tar(star)) == [name.encode()]


_A, _B = member("a", data=b"A"), member("b", data=b"B")


@pytest.mark.parametrize(
    "data",
    [
        _A + bytes(512) + _B + END, bytes(512) + _A + _B + END, tar(_A) + tar(_B),
        tar(_A).ljust(10240, b"\0") + tar(_B), _A + _B, _A + _B + bytes(512),
        _A + _B + bytes(1 << 20), _A + _B + END + bytes(100),
    ],
)  # fmt: skip
def test_zero_blocks_end_nothing(data: bytes) -> None:
    assert _names(data) == [b"a", b"b"]


@pytest.mark.parametrize(
    "data",
    [
        tar(_A) + b"\xa5" * 512, tar(_A) + b"\xa5" * 100, tar(_A) + bytes(1 << 20) + b"\xa5" * 512,
        tar(_A + b"\xa5" * 512), _A[:100] + _A[101:] + END, tar(_A)[:500],
        tar(header_with(_A[:512], {156: b"M"})), tar(header_with(_A[:512], {124: b"9"})),
        member("x", pax={"k": "v"})[:1024], member("x", pax={"k": "v"})[:600],
    ],
)  # fmt: skip
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SourceError):
        _members(data)


def test_no_bytes_are_an_empty_tar() -> None:
    for size in (0, 512, 1024, 10240):
        assert _members(bytes(size)) == []


def _bomb(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf()


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_extended_headers_are_refused_before_they_are_read(kind: bytes) -> None:
    class Watched(_Bytes):
        def read(self, length: int) -> bytes:
            assert length <= 1 << 20
            return super().read(length)

    with pytest.raises(SourceError, match="extended header of 125829120 bytes"):
        list(members(Watched(_bomb(kind, 120 << 20))))


def test_global_headers_apply_and_do_not_pile_up() -> None:
    record = b"30 SCHILY.xattr.user.g=global\n"
    assert len(record) == 30
    glob = _bomb(tarfile.XGLTYPE, len(record)) + record.ljust(512, b"\0")
    first, second = _members(glob + member("a") + member("b", xattrs={"user.own": "o"}))
    assert first.xattrs == {b"user.g": b"global"}
    assert second.xattrs == {b"user.g": b"global", b"user.own": b"o"}
    big = b""
    for i in range(3):
        value = b"x" * (500 << 10)
        text = b" SCHILY.xattr.user.k%d=" % i + value + b"\n"
        text = b"%d" % (len(text) + 6) + text
        big += _bomb(tarfile.XGLTYPE, len(text)) + text + bytes(-len(text) % 512)
    with pytest.raises(SourceError, match="global headers"):
        _members(big + member("a"))


def test_the_data_of_links_and_directories_are_not_there() -> None:
    odd = header_with(member("l", HARD, link="a")[:512], {124: b"00000000777\0"})
    assert _names(tar(_A, odd, _B)) == [b"a", b"l", b"b"]
    incremental = header_with(member("d", DIR)[:512], {156: b"D", 124: b"00000000007\0"})
    data = incremental + b"Yfile\0\0".ljust(512, b"\0")
    directory, file = _members(tar(data, _A))
    assert (directory.type, directory.size, file.name) == (DIR, 0, b"a")


def _pax_sparse(version: str) -> bytes:
    pieces = [(0, 3), (8000, 4)]
    pax = {"GNU.sparse.name": "s", "GNU.sparse.realsize": "9000"}
    data = b"abcdefg"
    if version == "0.1":
        pax |= {"GNU.sparse.numblocks": "2"}
        pax |= {"GNU.sparse.map": ",".join(f"{a},{b}" for a, b in pieces)}
        return member("GNUSparse/s", data=data, pax=pax)
    pax |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    table = b"2\n" + b"".join(b"%d\n%d\n" % piece for piece in pieces)
    return member("GNUSparse/s", data=table.ljust(512, b"\0") + data, pax=pax)


def _old_gnu_sparse() -> bytes:
    entry = member("s", data=b"abcdefg", form=GNU)
    fields = {156: b"S", 386: b"%011o\0%011o\0" % (0, 3), 410: b"%011o\0%011o\0" % (8000, 4)}
    return header_with(entry[:512], {**fields, 483: b"%011o\0" % 9000}) + entry[512:]


@pytest.mark.parametrize(
    "entry", [_pax_sparse("0.1"), _pax_sparse("1.0"), _old_gnu_sparse()], ids=["0.1", "1.0", "old"]
)
def test_sparse_members(entry: bytes) -> None:
    data = tar(entry, _A)
    found, after = _members(data)
    assert (found.name, found.size, after.name) == (b"s", 9000, b"a")
    assert found.sparse is not None
    assert list(zip(found.sparse.offsets, found.sparse.lengths, strict=True)) == [(0, 3), (8000, 4)]
    assert data[found.offset : found.offset + 7] == b"abcdefg"


@pytest.mark.parametrize("pieces", ["0,3,2,4", "0,7,8999,2", "5,3,0,4", "0,100", "0,x", "0"])
def test_sparse_maps_that_overlap_or_promise_more_are_refused(pieces: str) -> None:
    pax = {"GNU.sparse.size": "9000", "GNU.sparse.numblocks": "2", "GNU.sparse.map": pieces}
    with pytest.raises(SourceError, match="sparse"):
        _members(tar(member("s", data=b"abcdefg", pax=pax)))


def test_a_map_in_the_data_is_bounded() -> None:
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    for table in (b"9" * 18 + b"\n", b"1" * 2048, b"3\n1\n"):
        with pytest.raises(SourceError, match="sparse map"):
            _members(tar(member("s", data=table.ljust(2048, b"0"), pax=pax)))


_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=300)


@given(
    names=st.lists(_texts, min_size=1, max_size=5), target=_texts,
    owner=st.integers(0, 1 << 33), mtime=st.integers(-(1 << 40), 1 << 40),
    form=st.sampled_from([tarfile.PAX_FORMAT, GNU]), data=st.binary(max_size=1500),
)  # fmt: skip
def test_members_are_those_that_tarfile_reads(
    names: list[str], target: str, owner: int, mtime: int, form: int, data: bytes
) -> None:
    name = "/".join(n for n in names if n not in (".", "..")) or "x"
    content = tar(
        member(name, data=data, owner=owner, mtime=mtime, form=form),
        member("link", LINK, link=target, form=form), member("dir/", DIR, form=form),
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as reader:
        want = [
            (i.name, i.linkname, i.uid, i.gid, i.mode, int(i.mtime), i.size, i.offset_data)
            for i in reader
        ]
    got = [
        (
            m.name.decode("utf-8", "surrogateescape").rstrip("/"), m.link.decode(), m.uid, m.gid,
            m.mode, m.mtime, m.size, m.offset,
        )
        for m in _members(content)
    ]  # fmt: skip
    assert got == [(n.rstrip("/"), *rest) for n, *rest in want]
