"""Writing and hashing behind the back of whoever fills the next buffer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class WriteBehind:
    """Two buffers of ``size`` bytes: one to fill, one that is being written, in order.

    An error of ``write`` is raised by the next ``submit`` or by ``finish``.
    ``close`` waits for what is under way, whatever became of it.
    """

    def __init__(self, write: Callable[[memoryview], object], size: int) -> None:
        self._write = write
        self._buffers = bytearray(size), bytearray(size)
        self._pool = ThreadPoolExecutor(1, "write-behind")
        self._pending: Future[object] | None = None

    @property
    def buffer(self) -> bytearray:
        """The one to fill now."""
        return self._buffers[0]

    def submit(self, size: int) -> None:
        """Let the first ``size`` bytes of ``buffer`` be written; it is another one then."""
        self.finish()
        self._pending = self._pool.submit(self._write, memoryview(self._buffers[0])[:size])
        self._buffers = self._buffers[1], self._buffers[0]

    def finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self._pool.shutdown()
