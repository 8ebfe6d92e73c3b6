"""What a process says it will read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nydus_fscache.kernel.commands import MOST_WORDS, command_of

WAIT = "import sys; print(flush=True); sys.stdin.read()"


def test_words_and_directory_of_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAIT, "one two", *(str(n) for n in range(100))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        words, cwd = command_of(process.pid)
        process.communicate(b"")
    assert words[:4] == [os.fsencode(word) for word in command[:4]]
    assert len(words) <= MOST_WORDS
    assert cwd == os.fsencode(tmp_path)


def test_of_a_process_that_has_ended_there_is_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert command_of(process.pid) == ([], b"/")
