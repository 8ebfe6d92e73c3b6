"""A stand-in for Dragonfly's dfdaemon as a proxy, as its documentation describes it.

A forward proxy over http: a request that asks for P2P (``X-Dragonfly-Use-P2P``) becomes a task,
which gets the whole file from its source once and answers ranges out of it; any other request is
passed on.  Errors of the source keep their status and are marked ``backend``; its own are marked
``proxy`` or ``dfdaemon``.  Health is asked at another port (``/healthy``).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import requests
from rangeserver import RangeServer

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Dragonfly:
    """``mode``: ``works``, ``busy`` (429 of its own) or ``broken`` (500).  ``healthy``: as it says
    itself."""

    directory: Path  # empty
    mode: str = "works"
    healthy: bool = True
    from_source: int = 0  # times that a whole file was fetched
    tasks: dict[str, Answer] = field(default_factory=dict)
    seen: list[dict[str, str]] = field(default_factory=list)  # headers of requests for P2P

    def __enter__(self) -> Dragonfly:
        self._session = requests.Session()
        self._session.trust_env = False
        self._proxy = RangeServer(self.directory, route=self._route)
        self._health = RangeServer(self.directory, route=self._healthy)
        self._proxy.__enter__()
        self._health.__enter__()
        self.url, self.ping_url = self._proxy.url, f"{self._health.url}/healthy"
        return self

    def __exit__(self, *exc: object) -> None:
        self._health.__exit__(None, None, None)
        self._proxy.__exit__(None, None, None)
        self._session.close()

    def _healthy(self, *_: object) -> Answer:
        return (200 if self.healthy else 503), {}, b""

    def _route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if self.mode == "busy":
            return 429, {"X-Dragonfly-Error-Type": "proxy"}, b"too many requests"
        if self.mode == "broken":
            return 500, {"X-Dragonfly-Error-Type": "dfdaemon"}, b"no piece came"
        own = {"Host", "Range", "Proxy-Authorization", "Connection"}
        passed = {k: v for k, v in headers.items() if k not in own and "Dragonfly" not in k}
        if headers.get("X-Dragonfly-Use-P2P") != "true":
            with self._session.request(method, path, headers=passed, data=body) as answer:
                return answer.status_code, {}, answer.content
        self.seen.append(headers)
        task = hashlib.sha256(path.encode()).hexdigest()
        if task not in self.tasks:
            with self._session.get(path, headers=passed) as answer:
                if answer.status_code != 200:
                    kind = {"X-Dragonfly-Error-Type": "backend"}
                    return answer.status_code, kind, answer.content
                self.from_source += 1
                self.tasks[task] = 200, {"X-Dragonfly-Task-ID": task}, answer.content
        _, notes, whole = self.tasks[task]
        notes = {**notes, "X-Dragonfly-Task-Download-Finished": "true"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
        if not wanted:
            return 200, notes, whole
        first = int(wanted[1])
        last = min(int(wanted[2] or len(whole) - 1), len(whole) - 1)
        place = {"Content-Range": f"bytes {first}-{last}/{len(whole)}"}
        return 206, {**notes, **place}, whole[first : last + 1]
