"""What programs need is read off real ones, and hostile ones need nothing."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_fscache.image import elf


def _needs(data: bytes) -> elf.Needs:
    return elf.needs(lambda off, length: data[off : off + length])


def test_a_real_program() -> None:
    program = Path(sys.executable).resolve()
    found = _needs(program.read_bytes())
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert found.libraries
    assert all(name in said for name in found.libraries)
    assert any("ld-" in path for path in found.paths)


def test_scripts() -> None:
    assert _needs(b"#!/bin/sh\nexit\n" + bytes(64)).paths == ["/bin/sh"]
    env = _needs(b"#! /usr/bin/env -S python3 -u\n" + bytes(64))
    assert env.paths == ["/usr/bin/env", "/usr/bin/python3"]
    assert _needs(b"plain text" + bytes(64)) == elf.Needs()


def test_what_is_not_here_yet_is_said() -> None:
    data = Path(sys.executable).resolve().read_bytes()
    with pytest.raises(elf.NotHereYetError):
        elf.needs(lambda off, length: data[off : off + length] if off < 4096 else None)


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(0, 1 << 64), st.integers(0, 65535))
def test_hostile_files_need_nothing_or_names(tail: bytes, table: int, count: int) -> None:
    head = bytearray(elf.MAGIC.ljust(64, b"\0"))
    head[32:40] = struct.pack("<Q", table % (1 << 64) % 512)
    head[54:58] = struct.pack("<HH", 56, count)
    found = _needs(bytes(head) + tail)
    assert len(found.libraries) <= elf.MAX_NEEDED
