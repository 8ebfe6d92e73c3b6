"""An answer of a server, whichever HTTP layer received it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from nydus_fscache.errors import BackendError

_BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))

_HINTS = {
    401: "wrong or missing credentials: docker login, IMAGE_PULL_AUTH, or auth in the backend",
    403: "the credentials do not allow it, or the host's clock is wrong",
    404: "is the image still there, under this name?",
    416: "the blob is shorter than the image says: it was cut or replaced",
    429: "the server limits its clients: log in, or use a mirror",
}


class Answer(Protocol):
    """``headers`` have lower case names; ``length`` of the body, None until its end is seen.

    ``report``, where there is one, is told how the body went: "" when it came whole.
    """

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def peer(self) -> str: ...
    @property
    def length(self) -> int | None: ...
    @property
    def report(self) -> Callable[[str], None] | None: ...

    def readinto(self, buf: memoryview) -> int:
        """At least one byte; 0 at the end of the body."""
        ...

    def close(self) -> None: ...


class StatusError(BackendError):
    """An answer that is not the data."""

    def __init__(self, what: str, answer: Answer) -> None:
        status = answer.status
        super().__init__(
            f"{what}: {answer.peer} answers {status}",
            hint=_HINTS.get(status, "see the log of that server"),
            status=status,
            retryable=status in _BUSY,
        )
        after = answer.headers.get("retry-after", "")
        self.retry_after_s = float(after) if after.isascii() and after.isdigit() else 0.0
