"""Work that is done beside the caller: reading, compressing and writing go on at the same time."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread


class Background:
    """One piece of work at a time, in order.

    What a piece raises is raised by the next ``start`` or by ``finish``.  ``close``
    waits for what is under way, whatever became of it.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Do ``work`` when what was started before it has ended, which is waited for."""
        self.finish()
        self._thread = Thread(target=self._run, args=(work,), name="behind")
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
