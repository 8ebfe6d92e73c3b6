"""Every error that a user can meet, with its exit code and its remedy.

The exit codes are a contract (docs/commands.md, "Exit codes"): scripts rely on them, so a
number is never reused for something else.
"""

from __future__ import annotations


class FscacheError(Exception):
    """What failed, on what; ``hint`` is the next step, one line."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(FscacheError):
    """The command line or a configuration contradicts itself."""

    exit_code = 2


class BadImage(FscacheError):
    """The image itself is wrong: bootstrap, blob metadata, manifest."""

    exit_code = 3


class BackendError(FscacheError):
    """Data could not be had from the backend (missing, refused, unreachable, wrong)."""

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status  # the HTTP status, where there was one
        self.retryable = retryable  # the same request may succeed a little later


class KernelRefused(FscacheError):
    """The kernel offers no transport, or refused a call that it should take."""

    exit_code = 5


class MountpointError(FscacheError):
    """The mountpoint is missing, busy, or not one of ours."""

    exit_code = 6


class NotPrivileged(FscacheError):
    """The caller is not root in the initial user namespace."""

    exit_code = 7


class CacheDirError(FscacheError):
    """The state and cache directory cannot be used (file system, space, permissions)."""

    exit_code = 8


class DaemonError(FscacheError):
    """The daemon does not run, does not answer, or died."""

    exit_code = 9


class DaemonEnding(DaemonError):
    """It takes no more work: it ends, or another version takes its place.  To be tried again."""


class NoDaemon(DaemonError):
    """None runs here."""


class RootInUse(CacheDirError):
    """By another daemon, which may be ending."""
