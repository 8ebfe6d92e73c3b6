"""How far a run is: bars that move on a terminal, a line for each end elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from dataclasses import field
from types import TracebackType
from typing import Self, TextIO

from nydus_fscache.cli.output import size
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

_STEP_S = 0.1
_BAR = 24
_ROWS = 12


@dataclass
class _Task:
    name: str
    total: int
    board: Board
    done: int = 0
    ended: bool = False
    began: float = field(default_factory=time.monotonic)

    def advance(self, count: int) -> None:
        self.done += count

    def end(self, note: str = "") -> None:
        self.ended = True
        self.board.ended(self, note)


class Board:
    """A ``Progress``; a context manager, which takes the bars away."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._lock = threading.RLock()
        self._tasks: list[_Task] = []
        self._drawn = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._handlers: list[tuple[logging.StreamHandler[TextIO], object]] = []

    def __enter__(self) -> Self:
        if self._out.isatty():
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is self._out:
                    self._wrap(handler)
            self._thread = threading.Thread(target=self._draw_always, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._clear()
        for handler, emit in self._handlers:
            handler.emit = emit  # type: ignore[method-assign,assignment]

    def _wrap(self, handler: logging.StreamHandler[TextIO]) -> None:
        """Lines of the log go above the bars."""
        plain = handler.emit
        self._handlers.append((handler, plain))

        def emit(record: logging.LogRecord) -> None:
            with self._lock:
                self._clear()
                plain(record)
                self._draw()

        handler.emit = emit  # type: ignore[method-assign]

    def begin(self, name: str, total: int) -> _Task:
        task = _Task(name, total, self)
        with self._lock:
            self._tasks.append(task)
        return task

    def ended(self, task: _Task, note: str) -> None:
        took = time.monotonic() - task.began
        log.info("%s: %s, %s in %.1fs", task.name, note or "done", size(task.total), took)

    def _draw_always(self) -> None:
        while not self._over.wait(_STEP_S):
            with contextlib.suppress(OSError), self._lock:
                self._clear()
                self._draw()

    def _clear(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._out.flush()
            self._drawn = 0

    def _draw(self) -> None:
        if self._over.is_set() or self._thread is None:
            return
        running = [t for t in self._tasks if not t.ended]
        if not running:
            return
        lines = [_line(t.name, t.done, t.total) for t in running[:_ROWS]]
        done = sum(t.total if t.ended else min(t.done, t.total) for t in self._tasks)
        lines.append(_line("total", done, sum(t.total for t in self._tasks)))
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()
        self._drawn = len(lines)


def _line(name: str, done: int, total: int) -> str:
    share = min(1.0, done / total) if total else 1.0
    filled = int(share * _BAR)
    bar = "#" * filled + "." * (_BAR - filled)
    return f"{name[:24]:<24} [{bar}] {share:4.0%} {size(done)} of {size(total)}"
