"""Parsers of command lines that import nothing to know how wide the terminal is.

``argparse`` asks shutil for it with each option that is added, and that imports all compressors:
a fifth of the time of a short command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

_WIDTH = 80  # where there is no terminal
_MARGIN = 2


class Parser(argparse.ArgumentParser):
    """Like its base; sub-parsers are of its type too."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        make: Callable[..., argparse.HelpFormatter] = self.formatter_class
        return make(prog=self.prog, width=_columns() - _MARGIN)


def _columns() -> int:
    """As ``shutil.get_terminal_size`` has it."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        if sys.__stdout__ is not None:
            return os.get_terminal_size(sys.__stdout__.fileno()).columns or _WIDTH
    except (ValueError, OSError):  # closed, or not a terminal
        pass
    return _WIDTH
