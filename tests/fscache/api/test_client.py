"""The client of the API: how long it waits, and for what."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nydus_fscache.api import client as client_module
from nydus_fscache.api.client import Client
from nydus_fscache.cli.fscache import gc
from nydus_fscache.errors import DaemonError

ANSWER = {"evicted": []}


@contextmanager
def daemon(root: Path, may_answer: threading.Event) -> Iterator[None]:
    """Takes connections, and answers none before ``may_answer``."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(root / "api.sock"))
    listening.listen()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the caller has given up
            if connection.recv(1 << 16):
                may_answer.wait(30)
                body = json.dumps(ANSWER).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)

    def serve() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            answering.append(threading.Thread(target=answer, args=(connection,)))
            answering[-1].start()

    answering: list[threading.Thread] = []
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        may_answer.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for each in (thread, *answering):
            each.join()


def test_a_gc_is_waited_for_longer_than_other_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_answer = threading.Event()
    with daemon(tmp_path, may_answer):
        with pytest.raises(DaemonError, match="timed out"):
            Client(tmp_path, 0.05).call("GET", "/v1/status")
        waited: list[float] = []

        class Noted(Client):
            def __init__(self, root: Path, patience_s: float = 0.05) -> None:
                waited.append(patience_s)
                super().__init__(root, patience_s)

        monkeypatch.setattr(client_module, "Client", Noted)
        may_answer.set()
        args = argparse.Namespace(root=tmp_path, dry_run=False, to=0)
        assert gc._collect(args) == ANSWER
        assert waited == [gc.PATIENCE_S]
        assert gc.PATIENCE_S > client_module.CALL_PATIENCE_S
