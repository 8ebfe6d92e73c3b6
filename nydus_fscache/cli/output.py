"""How sizes, tables and names out of images are printed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

_STEP = 1024


def size(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _STEP:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} TiB"


def parse_size(text: str) -> int:
    """'10G' -> bytes; units are powers of 1024.  For argparse."""
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)(i?B)?", text, re.IGNORECASE | re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: such as 500M or 10G")
    return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def printable(name: bytes) -> str:
    """A name from an image, for a terminal: what could steer it is escaped, unambiguously."""
    text = name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
