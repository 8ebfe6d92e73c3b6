"""The one thread that readers wait for: what becomes of the service when it is lost."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_fscache.core.events import ReadMiss
from nydus_fscache.daemon import dispatch
from nydus_fscache.daemon.dispatch import EXIT_STUCK, Dispatcher

PATIENCE_S = 10


class Ended(BaseException):
    pass


class Engine:
    """``events``: one an answer of ``next``; ``get``: what is done for each."""

    def __init__(self, *events: Any) -> None:
        self._events = list(events)
        self.blocked, self.go_on = threading.Event(), threading.Event()
        self.core = self.objects = self
        self.transports = SimpleNamespace(in_use=dict)

    def next(self, timeout_ms: int) -> list[Any]:
        if not self._events:
            raise MemoryError
        return [self._events.pop()]

    def get(self, number: int) -> SimpleNamespace:
        self.blocked.set()
        assert self.go_on.wait(PATIENCE_S)
        return SimpleNamespace(demand=lambda off, length: None)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(dispatch.os, "_exit", end)
    monkeypatch.setattr(dispatch, "WATCH_S", 0.001)
    return codes


def test_one_that_is_stuck_ends_the_service(exits: list[int]) -> None:
    engine, stopped = Engine(ReadMiss(1, 0, 4096, pid=1)), threading.Event()
    dispatcher: Any = Dispatcher(engine)  # type: ignore[arg-type]

    def run() -> None:
        with pytest.raises(Ended):
            dispatcher.run(stopped)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert engine.blocked.wait(PATIENCE_S)
        with pytest.raises(Ended):
            dispatcher.watch(stopped)
        assert exits == [EXIT_STUCK]
    finally:
        engine.go_on.set()
        thread.join(PATIENCE_S)
    assert exits == [EXIT_STUCK] * 2, "and so does one that finds no memory"


def test_one_that_waits_or_works_is_left_alone(exits: list[int]) -> None:
    dispatcher: Any = Dispatcher(Engine())  # type: ignore[arg-type]
    stopped = threading.Event()
    looks = iter(range(10 * dispatch.STUCK_LOOKS))

    def look(timeout: float) -> bool:
        dispatcher._begun += 1  # another event each time
        return next(looks, None) is None

    stopped.wait = look  # type: ignore[method-assign, assignment]
    dispatcher.watch(stopped)
    dispatcher._done = dispatcher._begun
    looks = iter(range(10 * dispatch.STUCK_LOOKS))
    stopped.wait = lambda timeout: next(looks, None) is None  # type: ignore[method-assign, assignment]
    dispatcher.watch(stopped)
    assert not exits
