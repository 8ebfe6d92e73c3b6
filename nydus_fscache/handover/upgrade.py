"""Both ends of the question that comes before an upgrade: can this installation take over?

The running service asks another interpreter, which has another version of this
package.  Only when that one can read the state and knows the journal does the
service make way; otherwise nothing has happened.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import nydus_fscache
from nydus_fscache.errors import DaemonError, FscacheError, UsageError
from nydus_fscache.handover import fail_pending, state
from nydus_fscache.handover.commands import KEEPER, daemon_argv
from rafs_v6.values import dataclass

ASK_S = 20.0
_HINT = "the running service goes on; install the new version anew, or name its --python"


@dataclass(frozen=True, slots=True)
class Successor:
    """``keeper``, ``service``: the commands of the other installation."""

    version: str
    keeper: list[str]
    service: list[str]


def ask(python: str, root: Path, journal: int) -> Successor:
    """Raises ``DaemonError`` with the reason when it cannot.  ``journal``: to be inherited."""
    if not Path(python).is_absolute() or not os.access(python, os.X_OK):
        raise UsageError(f"{python} is no program", hint="name a Python interpreter by its path")
    import subprocess  # noqa: PLC0415 - only here

    command = [*daemon_argv(root, python)[1], "--ask", str(journal)]
    why = ""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S,
            pass_fds=[journal], check=False,
        )  # fmt: skip
        why = (done.stderr.strip().splitlines() or [f"it exited with {done.returncode}"])[-1]
        answer: dict[str, Any] = json.loads(done.stdout)
        if "error" in answer:
            raise DaemonError(f"{python} cannot take over: {answer['error']}", hint=_HINT)
        return Successor(str(answer["version"]), *daemon_argv(root, python, Path(answer["keeper"])))
    except subprocess.TimeoutExpired:
        raise DaemonError(f"{python} does not answer in {ASK_S:.0f} s", hint=_HINT) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DaemonError(f"{python} cannot take over: {why or e}", hint=_HINT) from e


def answer(root: Path, journal: int) -> dict[str, str]:
    """What the other installation says; ``error`` when it cannot take over."""
    try:
        state.load(root / "state.json")
    except FscacheError as e:
        return {"error": str(e)}
    with mmap.mmap(journal, 0, prot=mmap.PROT_READ) as memory:
        if not fail_pending.journal_slots(memory):
            return {"error": "it does not know this version of the event journal"}
    return {"version": nydus_fscache.__version__, "keeper": str(KEEPER)}
