"""Readers that never rest: they read a tree again and again and compare every byte."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Load:
    """``mount``: a tree that must show the golden list.  Findings are kept, never raised."""

    mount: Path
    expected_file: Path
    readers: int = 8
    wrong: list[str] = field(default_factory=list)
    reads: int = 0
    longest_s: float = 0.0

    def __post_init__(self) -> None:
        entries = map(json.loads, self.expected_file.read_text().splitlines())
        self.expected = {e["path"]: e["sha256"] for e in entries if e["type"] == "reg"}
        self._end = threading.Event()
        self._lock = threading.Lock()
        seeds = range(self.readers)
        self._threads = [threading.Thread(target=self._read, args=(i,)) for i in seeds]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(120)
        if any(thread.is_alive() for thread in self._threads):
            self.wrong.append("a reader hangs")

    def _read(self, seed: int) -> None:
        order = sorted(self.expected)
        random.Random(seed).shuffle(order)
        while not self._end.is_set():
            for path in order:
                if self._end.is_set():
                    return
                self._check(path)

    def _check(self, path: str) -> None:
        begin = time.monotonic()
        try:
            with (self.mount / path.lstrip("/")).open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as e:
            self.wrong.append(f"{path}: {e}")
            return
        took = time.monotonic() - begin
        with self._lock:
            self.reads += 1
            self.longest_s = max(self.longest_s, took)
            if found != self.expected[path]:
                self.wrong.append(f"{path}: wrong bytes")


