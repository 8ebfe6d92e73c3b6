"""``/metrics`` on a TCP address, for a scraper that cannot reach the API's socket.

Nothing else is served there, and nothing can be changed by it.  An address that cannot be had
is an error in the log and not of the daemon: it is tried again for as long as it runs.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import threading

from nydus_fscache.api.server import Routes, serve
from nydus_fscache.errors import UsageError

log = logging.getLogger("api")

VARIABLE = "NYDUS_FSCACHE_METRICS"  # environment of the daemon: ADDRESS:PORT
_AGAIN_S = 1.0
_MAX_PORT = 65535
_BACKLOG = 64


def parse_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:9230`` or ``[::1]:9230``; raises ``UsageError``."""
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})", text, re.ASCII)
    try:
        if found is None or not 0 < int(found[3]) <= _MAX_PORT:
            raise ValueError
        return str(ipaddress.ip_address(found[1] or found[2])), int(found[3])
    except ValueError:
        raise UsageError(
            f"{text!r} is not an address for metrics", hint="such as 127.0.0.1:9230 or [::1]:9230"
        ) from None


def _listener(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def keep_listening(text: str, routes: Routes, stopped: threading.Event) -> None:
    """Serve until then; in a thread of its own.  A service that makes way may still have it."""
    address, told = parse_address(text), False
    while not stopped.is_set():
        try:
            listener = _listener(address)
        except OSError as e:
            if not told:
                log.error("no metrics at %s yet: %s", text, e.strerror)
                told = True
            stopped.wait(_AGAIN_S)
            continue
        end = serve(routes, listener)
        log.info("metrics at http://%s/metrics", text)
        stopped.wait()
        listener.shutdown(socket.SHUT_RDWR)
        end()
        listener.close()
