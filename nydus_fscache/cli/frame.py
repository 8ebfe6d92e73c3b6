"""What the small programs have in common: errors are two lines and an exit code, never a trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from nydus_fscache.errors import FscacheError

_INTERRUPTED = 130


def guarded(prog: str, run: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """``run(words)``, whose errors are told in the name of ``prog``."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = run(words)
        sys.stdout.flush()
        return code
    except FscacheError as e:
        return _report(prog, e)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FscacheError.exit_code
    except OSError as e:
        where = f"{os.fspath(e.filename)!s}: " if e.filename else ""
        return _report(prog, FscacheError(f"{where}{e.strerror or e}"))
    except KeyboardInterrupt:
        return _INTERRUPTED


def _report(prog: str, error: FscacheError) -> int:
    print(f"{prog}: error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
