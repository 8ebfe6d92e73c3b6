"""``scripts/run``, as a person runs it: the table tells the truth and nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 240
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: nothing can be mounted")


def left_behind(checkout: Path) -> list[str]:
    """Mounts, processes and directories of runs of this checkout."""
    work = str(checkout / "build" / "nydus-fscache-run-")
    found = [str(path) for path in (checkout / "build").glob("nydus-fscache-run-*")]
    found += [m for m in Path("/proc/mounts").read_text().splitlines() if work in m]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if work in words:
            found.append(words)
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The checkout with nothing beside it, ready by the same .venv."""
    path = tmp_path_factory.mktemp("alone") / "checkout"
    without = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", "corpus")
    shutil.copytree(ROOT, path, ignore=without)
    (path / ".venv").symlink_to(ROOT / ".venv")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def nothing_stays(clone: Path) -> Iterator[None]:
    before = left_behind(ROOT)
    yield
    assert left_behind(clone) == []
    assert [line for line in left_behind(ROOT) if line not in before] == []


Done = subprocess.CompletedProcess[str]


def run(checkout: Path, *words: str, before: tuple[str, ...] = ()) -> Done:
    command = [*before, str(checkout / "scripts" / "run"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd="/"
    )


def table(done: Done) -> dict[str, str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())


def count(text: str) -> float:
    number, unit = text.split()[:2]
    return float(number) * _UNITS[unit]


def check_numbers(rows: dict[str, str]) -> None:
    total, fetched = count(rows["image size"]), count(rows["fetched"])
    assert 0 < fetched < total
    percentage = float(re.search(r"\(([\d.]+)%\)", rows["fetched"])[1])  # type: ignore[index]
    assert percentage == pytest.approx(100 * fetched / total, rel=0.05)
    assert int(rows["requests"]) > 0
    assert rows["the same again"].endswith(" s, 0 requests")
    assert rows["transport"] in ("cachefiles", "fanotify")
    for name in ("time to mount", "time to first output"):
        assert float(rows[name].split()[0]) > 0


@pytest.mark.usefixtures("golden", "nothing_stays")
def test_the_golden_image() -> None:
    done = run(ROOT)
    rows = table(done)
    assert rows["image"] == "layers-zstd (golden)"
    assert "it said: hello from a lazily loaded image" in done.stderr
    check_numbers(rows)


@pytest.mark.usefixtures("nothing_stays")
def test_alone_it_builds_an_image_and_says_so(clone: Path) -> None:
    done = run(clone, "--latency-ms", "1")
    rows = table(done)
    assert "no golden images in ../shared" in done.stderr
    assert '"hello from": ' in done.stderr
    assert "nydus-image create" in rows["image"]
    check_numbers(rows)


@contextlib.contextmanager
def running_until(clone: Path, moment: str) -> Iterator[subprocess.Popen[str]]:
    words = [str(clone / "scripts" / "run"), "--latency-ms", "100"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stderr=pipe, stdout=pipe, text=True) as child:
        assert child.stderr is not None
        try:
            deadline = time.monotonic() + PATIENCE_S
            while moment not in (line := child.stderr.readline()):
                assert line, "it ended before"
                assert time.monotonic() < deadline
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("moment", "number"), [("mounting", signal.SIGINT), ("starting", signal.SIGTERM)]
)
@pytest.mark.usefixtures("nothing_stays")
def test_interrupted_it_cleans_up(clone: Path, moment: str, number: signal.Signals) -> None:
    with running_until(clone, moment) as child:
        child.send_signal(number)
        assert select.select([child.stdout], [], [], PATIENCE_S)[0]
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read() == ""
        assert "cleaned up" in child.stderr.read()
        assert child.wait(PATIENCE_S) == 128 + number


@pytest.mark.usefixtures("nothing_stays")
def test_killed_it_is_cleaned_up_by_the_next_run(clone: Path) -> None:
    with running_until(clone, "starting") as child:
        child.kill()
    done = run(clone)
    assert "was left by a run that was killed" in done.stderr
    check_numbers(table(done))


@pytest.mark.usefixtures("nothing_stays")
def test_without_a_transport_it_says_why(clone: Path) -> None:
    """In a user namespace nobody may have pre-content events."""
    done = run(clone, before=("unshare", "--user", "--map-root-user"))
    if "unshare" in done.stderr.partition("\n")[0]:
        pytest.skip("USER NAMESPACES ARE FORBIDDEN HERE: no way to be without a transport")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "remedy: " in done.stdout
    assert "no transport works here" in done.stderr


def test_help_needs_nothing() -> None:
    done = run(ROOT, "--help")
    assert done.returncode == 0
    assert "scripts/run [--build]" in done.stdout
