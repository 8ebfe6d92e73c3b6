"""A slow link to a server on this machine: each direction has a latency and a bandwidth."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

_PIECE = 64 * 1024
_AHEAD = 64  # pieces on the way in one direction of a connection


class Link:
    """``round_trip_s`` and ``bytes_per_s`` of all connections together, each way."""

    def __init__(self, port: int, round_trip_s: float, bytes_per_s: float) -> None:
        self._upstream, self._delay, self._rate = port, round_trip_s / 2, bytes_per_s
        self._free = [0.0, 0.0]
        self.moved = [0, 0]  # bytes to the server, and from it
        self.port = 0

    async def serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await server.serve_forever()

    async def _accept(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pump(0, down, writer), self._pump(1, reader, up))

    async def _pump(
        self, way: int, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    break
                target.write(data)
                await target.drain()
            target.close()

        task = asyncio.create_task(deliver())
        data = b"?"
        while data:
            try:
                data = await source.read(_PIECE)
            except OSError:
                data = b""
            self._free[way] = max(self._free[way], loop.time()) + len(data) / self._rate
            self.moved[way] += len(data)
            await queue.put((self._free[way] + self._delay, data))
        with contextlib.suppress(OSError):
            await task


@contextlib.contextmanager
def link(port: int, round_trip_s: float, bytes_per_s: float) -> Iterator[Link]:
    """Serves in a thread; ``port`` of the result leads to ``port`` over the link."""
    made = Link(port, round_trip_s, bytes_per_s)
    loop, started = asyncio.new_event_loop(), threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            loop.run_until_complete(made.serve(started))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(_end, loop)
        thread.join(5)


def _end(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
