"""The pages name what is there: files, tests, commands, exit codes, members of ``status``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nydus_fscache import errors
from nydus_fscache.cli.fscache.main import COMMANDS
from rafs_v6.cli import main as image_main

ROOT = Path(__file__).resolve().parents[1]
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def section(title: str) -> str:
    return COMMANDS_PAGE.partition(f"\n## {title}")[2].partition("\n## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = {page.parent / link for link in re.findall(r"\]\(([^):#]+)\)", text)}
    paths = {
        ROOT / path
        for path in re.findall(r"`((?:tests|scripts|docs|vm-tests)/[\w./-]+)", text)
    }
    assert [str(path) for path in links | paths if not path.exists()] == []


def test_commands_of_the_page_exist() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", section("Commands"), re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named
    assert named <= set(COMMANDS)


def test_every_command_of_nydus_image_has_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        image_main(["--help"])
    commands = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.M)
    page = (ROOT / "docs" / "nydus-image.md").read_text()
    sections = re.findall(r"^## ([a-z]+)$", page, re.M)
    assert sorted(sections) == sorted(commands)
    assert {"create", "check", "diff"} <= set(commands)


def test_exit_codes() -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert rows == {0, 130, *(k.exit_code for k in kinds if issubclass(k, errors.FscacheError))}


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no daemon")
def test_members_of_status(tmp_path: Path, golden: Path) -> None:
    def cli(*words: str | Path) -> str:
        command = [sys.executable, "-m", "nydus_fscache", *words, "--root", tmp_path / "root"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    image, mountpoint = golden / "images" / "one-lz4", tmp_path / "mnt"
    mountpoint.mkdir()
    try:
        cli("mount", image / "image.boot", mountpoint, "--blob-dir", image / "blobs")
        document = json.loads(cli("status", "--json"))
    finally:
        cli("stop")
    rows = dict(re.findall(r"^\| (\S+) \| (.*) \|$", section("The document"), re.M))
    places = {
        "top": document,
        "`mounts[]`": document["mounts"][0],
        "`blobs[]`": document["blobs"][0],
        "`requests`": document["requests"],
    }
    for where, there in places.items():
        named = re.findall(r"`(\w+)`", re.sub(r"\([^()]*\)", "", rows[where]))
        assert named
        assert [name for name in named if name not in there] == [], where
