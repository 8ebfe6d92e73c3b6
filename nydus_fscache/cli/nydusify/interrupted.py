"""How a signal reaches a command: as an exception in the main thread, once."""

from __future__ import annotations

import signal


class Interrupted(BaseException):
    """A signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def word(self) -> str:
        """As the original calls it: interrupt, terminated."""
        return (signal.strsignal(self.number) or str(self.number)).lower()
