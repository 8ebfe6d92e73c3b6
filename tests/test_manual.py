"""Manual pages and completions: made out of the parsers, understood by what reads them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nydus_fscache.cli.fscache.main import COMMANDS, parser_for
from nydus_fscache.config import settings

ROOT = Path(__file__).resolve().parents[1]


def needs(program: str) -> pytest.MarkDecorator:
    missing = not shutil.which(program)
    return pytest.mark.skipif(missing, reason=f"NO {program}: scripts/setup --test")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manual")
    environment = {**os.environ, "NYDUS_FSCACHE_ROOT": "/not/in/a/manual"}
    command = [sys.executable, ROOT / "scripts" / "manual", out]
    subprocess.run(command, check=True, env=environment)
    return out


def run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def pages(made: Path) -> list[Path]:
    return sorted(made.glob("man/*/*"))


@needs("mandoc")
def test_pages_are_well_formed(made: Path) -> None:
    assert run("mandoc", "-T", "lint", "-W", "warning", *pages(made)) == ""


@needs("man")
def test_man_shows_them(made: Path) -> None:
    page = made / "man/man8/nydus-fscache-mount.8"
    environment = {**os.environ, "MANPAGER": "cat", "MANWIDTH": "100", "LC_ALL": "C.UTF-8"}
    shown = subprocess.run(
        ["man", "--warnings", "-l", page], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert shown.stderr == ""
    text = re.sub(r".\x08", "", shown.stdout)
    assert "nydus-fscache-mount - mount an image that is loaded lazily" in text
    assert "nydus-fscache mount registry.example/team/app:1.2-nydus /mnt/app" in text


def test_every_command_and_option_has_its_place(made: Path) -> None:
    top = (made / "man/man8/nydus-fscache.8").read_text()
    for command in COMMANDS:
        assert f".BR nydus\\-fscache\\-{command} (8)" in top
        page = (made / f"man/man8/nydus-fscache-{command}.8").read_text().replace("\\-", "-")
        usage = parser_for([command])._subparsers
        assert usage is not None
        (choices,) = [a.choices for a in usage._group_actions]
        assert choices is not None
        for action in choices[command]._actions:  # type: ignore[call-overload,index]
            for option in action.option_strings:
                assert f"\\fB{option}\\fR" in page, f"{command} {option}"
    for page in pages(made):
        assert "/not/in/a/manual" not in page.read_text()
    keys = (made / "man/man5/nydus-fscache.toml.5").read_text()
    assert all(f"\\fB{key.name}\\fR" in keys for key in settings.KEYS)


def test_every_program_has_a_page_and_completions(made: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[2]
    programs = re.findall(r"^([\w-]+) = ", text.partition("\n[")[0], re.M)
    assert len(programs) > 6
    shown = {page.name.rpartition(".")[0] for page in pages(made)}
    assert set(programs) <= shown
    for program in programs:  # mount(8) runs its helpers; nobody types them
        for name in (f"bash/{program}", f"zsh/_{program}", f"fish/{program}.fish"):
            assert (made / "completions" / name).exists()


@pytest.mark.parametrize(
    "shell", [pytest.param(shell, marks=needs(shell)) for shell in ("bash", "zsh", "fish")]
)
def test_the_shell_can_read_them(made: Path, shell: str) -> None:
    files = sorted((made / "completions" / shell).iterdir())
    assert files
    for file in files:
        assert run(shell, "-n", file) == ""


CASES = [
    ("nydus-fscache mou", {"mount"}),
    ("nydus-fscache mount --prefetch ta", {"table"}),
    ("nydus-fscache mount --cache", {"--cache-limit"}),
    ("nydus-fscache umount ", {"one", "two"}),
    ("nydus-fscache mount ", {"one", "two", "file.boot"}),
    ("nydus-image chunkdict g", {"generate"}),
    ("nydusify conv", {"convert"}),
    ("nydusd singleton --fsc", {"--fscache", "--fscache-tag", "--fscache-threads"}),
    ("nydus-fscache status --root ", {"one", "two"}),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with something to complete."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "file.boot").touch()
    return tmp_path


@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_bash_completes(made: Path, place: Path, line: str, wanted: set[str]) -> None:
    program = line.split(maxsplit=1)[0]
    script = f"""
        cd {place}
        . {made}/completions/bash/{program}
        COMP_LINE={line!r}
        read -ra COMP_WORDS <<<"$COMP_LINE"
        [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _{program.replace('-', '_')}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert set(run("bash", "--norc", "-c", script).split()) == wanted


@needs("fish")
@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_fish_completes(made: Path, place: Path, line: str, wanted: set[str]) -> None:
    program = line.split(maxsplit=1)[0]
    script = f"cd {place}; source {made}/completions/fish/{program}.fish; complete -C {line!r}"
    out = run("fish", "--no-config", "-c", script)
    found = {entry.split("\t")[0].rstrip("/") for entry in out.splitlines()}
    assert found == wanted


ZSH = r"""
PROMPT= RPROMPT= fpath=({made}/completions/zsh $fpath)
unsetopt zle_bracketed_paste beep
autoload -U compinit; compinit -u -d {place}/.dump
compadd () {{
    if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
    local -a hits; local one
    builtin compadd -A hits "$@"
    for one in $hits; do print -r -- "$one" >> {place}/.hits; done
    builtin compadd "$@"
}}
bindkey '^I' complete-word
cd {place}
# not before the line editor reads: the terminal itself would obey some keys
zle-line-init () {{ : > {place}/.ready }}
note-end () {{ : > {place}/.done }}
zle -N zle-line-init; zle -N note-end; bindkey '^G' note-end
"""


@needs("zsh")
@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_zsh_completes(made: Path, place: Path, line: str, wanted: set[str]) -> None:
    """By its line editor, on a terminal; the candidates are noted."""
    setup = place / ".setup"
    setup.write_text(ZSH.format(made=made, place=place))
    ours, theirs = pty.openpty()
    zsh = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(place)},
    )  # fmt: skip

    def say(text: str, until: Path) -> None:
        os.write(ours, text.encode())
        deadline = time.monotonic() + 60
        while not until.exists():
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.02)[0]:
                os.read(ours, 1 << 16)

    try:
        say(f"source {setup}\n", place / ".ready")
        say(f"{line}\t\x07", place / ".done")
    finally:
        zsh.kill()
        zsh.wait()
        os.close(ours)
        os.close(theirs)
    hits = place / ".hits"
    found = set(hits.read_text().splitlines()) if hits.exists() else set()
    assert {name.rstrip("/") for name in found} == wanted
