"""The log: ``key=value`` lines as logrus writes them, in colours on a terminal."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

LEVELS = {
    "panic": logging.CRITICAL, "fatal": logging.CRITICAL, "error": logging.ERROR,
    "warn": logging.WARNING, "warning": logging.WARNING, "info": logging.INFO,
    "debug": logging.DEBUG, "trace": logging.DEBUG,
}  # fmt: skip
_NAMES = {
    logging.CRITICAL: "fatal", logging.ERROR: "error", logging.WARNING: "warning",
    logging.INFO: "info", logging.DEBUG: "debug",
}  # fmt: skip
_COLOURS = {"fatal": 31, "error": 31, "warning": 33, "info": 36, "debug": 37}
_PLAIN = re.compile(r"[A-Za-z0-9\-._/@^+]+")
_MODULES = ("converter", "builder", "checker")


class LogFormat(logging.Formatter):
    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        level = _NAMES.get(record.levelno, "info")
        message = record.getMessage()
        fields = {str(k): str(v) for k, v in getattr(record, "fields", {}).items()}
        if record.name in _MODULES:
            fields["module"] = record.name
        stamp = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self._colours:
            colour = _COLOURS[level]
            extra = "".join(
                f" \x1b[{colour}m{k}\x1b[0m={_quoted(v)}" for k, v in sorted(fields.items())
            )
            label = level.upper()[:4]
            return f"\x1b[{colour}m{label}\x1b[0m[{stamp}] {_shown(message):<44}{extra}".rstrip()
        words = [f'time="{stamp}"', f"level={level}", f"msg={_quoted(message)}"]
        return " ".join([*words, *(f"{k}={_quoted(v)}" for k, v in sorted(fields.items()))])


def _quoted(text: str) -> str:
    if text and _PLAIN.fullmatch(text):
        return text
    out = "".join(_escape(c) for c in text)
    return f'"{out}"'


def _escape(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def _shown(text: str) -> str:
    """For a terminal: nothing of a registry's words may steer it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def start(level: str, file: str) -> None:
    """Once; lines go to standard error or to ``file``, never to both."""
    root = logging.getLogger()
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormat(colours=sys.stderr.isatty()))
    problem = ""
    if file:
        try:
            handler = logging.FileHandler(Path(file), mode="a")
            handler.setFormatter(LogFormat(colours=False))
        except OSError as e:
            problem = f"failed to open log file {file}: {e.strerror}"
    root.handlers[:] = [handler]
    known = LEVELS.get(level)
    root.setLevel(known if known is not None else logging.INFO)
    for name in ("urllib3", "requests"):
        logging.getLogger(name).setLevel(logging.WARNING)
    log = logging.getLogger("nydusify")
    if known is None:
        log.warning("not a valid log level %r: info is used", level)
    if problem:
        log.error("%s", problem)
