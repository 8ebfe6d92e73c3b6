"""docs/format.md: every section that the code cites is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_NUMBER = r"\d+(?:\.\d+)*"
_CITED = re.compile(rf"format\.md[\s*#]+({_NUMBER}(?:(?:,| -| and)\s{_NUMBER})*)")
_BRACKETED = re.compile(rf"\[({_NUMBER}(?:, {_NUMBER})*)\]")


def _sources() -> list[Path]:
    found = [p for top in ("rafs_v6", "nydus_fscache", "tests") for p in (ROOT / top).rglob("*.py")]
    return [*found, *(ROOT / "csrc").rglob("*.[ch]")]


def test_every_cited_section_exists() -> None:
    text = (ROOT / "docs/format.md").read_text()
    sections = set(re.findall(rf"^#+ ({_NUMBER})\.? ", text, re.MULTILINE))
    cited: dict[str, list[str]] = {}
    for path in _sources():
        source = path.read_text()
        groups = _CITED.findall(source)
        if path.parent.name == "format" and path.name == "erofs.py":
            groups += _BRACKETED.findall(source)
        for group in groups:
            for number in re.findall(_NUMBER, group):
                cited.setdefault(number, []).append(path.name)
    assert len(cited) > 25, "the citations are found"
    for number, files in cited.items():
        listed = number if number.count(".") < 2 else number.rpartition(".")[0]
        assert listed in sections, f"format.md has no {number}, which {files} cite"


def test_nothing_is_cited_that_readers_do_not_have() -> None:
    for path in _sources():
        if path != Path(__file__):
            assert not re.search(r"\bsheet \d", path.read_text()), path
