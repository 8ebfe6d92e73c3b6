"""A backend that answers nothing until the test says so: what overlaps does so for certain."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rangeserver import RangeServer

PATIENCE_S = 30.0


@dataclass
class Gate:
    """``config``: for --backend; ``asked``: a request has come; ``open``: it may be answered."""

    config: Path
    asked: threading.Event
    open: threading.Event

    def wait_until_asked(self) -> None:
        assert self.asked.wait(PATIENCE_S)


@contextmanager
def gated(blobs: Path, directory: Path, status: int = 0) -> Iterator[Gate]:
    """``status``: of every answer, instead of data."""
    asked, may_answer = threading.Event(), threading.Event()

    def wait(
        method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str]] | None:
        asked.set()
        may_answer.wait(PATIENCE_S)
        return (status, {}) if status else None

    with RangeServer(blobs, route=wait) as server:
        config = directory / f"gate-{server.url.rpartition(':')[2]}.json"
        table = {"addr": server.url, "path": "/blobs"}
        config.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
        try:
            yield Gate(config, asked, may_answer)
        finally:
            may_answer.set()
