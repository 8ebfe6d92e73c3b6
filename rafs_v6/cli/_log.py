"""``--log-file`` and ``--log-level``: lines with time and level, to a file or a terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import IO

LEVELS = ("trace", "debug", "info", "warn", "error")


class Log:
    """``level`` None: info for the file, warn for the error output."""

    def __init__(self, path: Path | None, level: str | None) -> None:
        self._file: IO[str] | None = None
        if path is not None:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._file_level = LEVELS.index(level or "info")
        # Information is asked for: the output of a command that succeeds is read by programs.
        self._shown_level = LEVELS.index(level if level not in (None, "info") else "warn")

    def debug(self, text: str) -> None:
        self._write("debug", text)

    def info(self, text: str) -> None:
        self._write("info", text)

    def warn(self, text: str) -> None:
        self._write("warn", text)

    def error(self, text: str) -> None:
        """For the file only: every error is shown anyway."""
        self._to_file("error", text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, level: str, text: str) -> None:
        self._to_file(level, text)
        if LEVELS.index(level) >= self._shown_level:
            word = {"warn": "warning"}.get(level, level)
            print(f"nydus-image: {word}: {text}", file=sys.stderr)

    def _to_file(self, level: str, text: str) -> None:
        if self._file is not None and LEVELS.index(level) >= self._file_level:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._file.write(f"{now} {level.upper():5} {text}\n")
            self._file.flush()
