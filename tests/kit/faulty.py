"""A registry behind a proxy in which each answer can go wrong, as a test decides."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests
from rangeserver import RangeServer

Answer = tuple[int, dict[str, str], bytes]
_KEPT = (
    "Content-Type", "Docker-Content-Digest", "Location", "Range", "Content-Range",
    "Docker-Upload-UUID", "OCI-Subject", "WWW-Authenticate",
)  # fmt: skip


@dataclass
class Fault:
    """``answer``: what becomes of the registry's own, ``times`` times."""

    method: str
    path: str
    answer: Callable[[Answer], Answer]
    times: int = 1
    part: bool = False  # the registry gets the first half of the body


def status(code: int, headers: dict[str, str] | None = None) -> Callable[[Answer], Answer]:
    return lambda _: (code, headers or {}, b"")


class Broken(ConnectionError):
    """The connection ends without an answer."""


def lost(answer: Answer) -> Answer:
    """The registry did it, but nobody hears of it."""
    if answer[0]:
        raise Broken
    return answer


def gone(_: Answer) -> Answer:
    """Nobody answers; the registry never sees it."""
    raise Broken


def cut(answer: Answer) -> Answer:
    """The connection breaks in the middle of the body."""
    code, headers, body = answer
    broken = {**headers, "Content-Length": str(len(body)), "Connection": "close"}
    return code, broken, body[: len(body) // 2]


def flip(answer: Answer) -> Answer:
    """One bit of the body is another one."""
    code, headers, body = answer
    middle = len(body) // 2
    flipped = bytes(byte ^ 1 for byte in body[middle : middle + 1])
    return code, headers, body[:middle] + flipped + body[middle + 1 :]


@dataclass
class Proxy:
    upstream: str
    host: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    watch: Callable[[int, str], None] = lambda number, line: None

    def route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        line = f"{method} {path}"
        self.asked.append(line)
        self.watch(len(self.asked), line)
        fault = next(
            (f for f in self.faults
             if f.times and f.method == method and re.search(f.path, path)), None,
        )  # fmt: skip
        if fault is not None:
            fault.times -= 1
            early = fault.answer((0, {}, b""))
            if early[0]:  # the registry never sees it
                return early
        if fault is not None and fault.part:
            body = body[: len(body) // 2]
            headers.pop("Content-Range", None)
        sent = {k: v for k, v in headers.items() if k.lower() not in ("host", "content-length")}
        with requests.Session() as session:
            session.trust_env = False
            got = session.request(
                method, f"http://{self.upstream}{path}", headers=sent, data=body,
                allow_redirects=False,
            )  # fmt: skip
        kept = {k: got.headers[k] for k in _KEPT if k in got.headers}
        if "Location" in kept:
            kept["Location"] = kept["Location"].replace(self.upstream, self.host)
        if method == "HEAD" and "Content-Length" in got.headers:
            kept["Content-Length"] = got.headers["Content-Length"]
        answer = (got.status_code, kept, got.content)
        return answer if fault is None else fault.answer(answer)


@contextlib.contextmanager
def faulty(upstream: str, directory: Path) -> Iterator[Proxy]:
    """``upstream``: host:port of a registry.  Use the proxy's ``host`` instead."""
    proxy = Proxy(upstream)

    def route(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return proxy.route(method, path, headers, body)  # which a test may replace

    with RangeServer(directory, route=route) as server:
        proxy.host = server.host
        yield proxy
