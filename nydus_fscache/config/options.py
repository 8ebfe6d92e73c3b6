"""Reads a backend's table of options strictly: wrong types and unknown names are errors.

nydusd ignores what it does not know; a misspelt option that is silently ignored
costs an hour at night, so we only ignore names that other tools are known to write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nydus_fscache.config.url import Url, parse_url
from nydus_fscache.errors import UsageError

MAX_NUMBER = 10**9
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


def is_header(name: object, value: object) -> bool:
    """May both be sent as a header?  A line break would begin another one."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and bool(_TOKEN.fullmatch(name))
        and bool(_VALUE.fullmatch(value))
    )


class Options:
    """``kind``: the backend's name, for messages."""

    def __init__(self, kind: str, table: Any) -> None:
        if not isinstance(table, Mapping):
            raise UsageError(
                f"backend {kind} has no options", hint=f'{{"type": "{kind}", "{kind}": {{…}}}}'
            )
        self.kind = kind
        self._left: dict[str, Any] = dict(table)

    def _take(self, name: str, default: Any, types: tuple[type, ...], what: str) -> Any:
        value = self._left.pop(name, default)
        wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if wrong and value is not default:
            raise UsageError(f"{self.kind}.{name} is {value!r}", hint=f"it must be {what}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._take(name, default, (str,), "a string")
        if value is None:
            raise UsageError(f"{self.kind} needs {name}", hint="add it to the backend's options")
        return str(value)

    def header_text(self, name: str, default: str | None = None) -> str:
        """A text that becomes part of a header."""
        text = self.text(name, default)
        if not _VALUE.fullmatch(text):
            raise UsageError(
                f"{self.kind}.{name} has characters that HTTP cannot carry",
                hint="printable ASCII only",
            )
        return text

    def texts(self, name: str) -> list[str]:
        value = self._take(name, [], (list,), "a list of strings")
        if not all(isinstance(v, str) for v in value):
            raise UsageError(f"{self.kind}.{name} is {value!r}", hint="a list of strings")
        return list(value)

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self._take(name, default, (bool,), "true or false"))

    def number(self, name: str, default: float) -> float:
        value = self._take(name, default, (int, float), "a number")
        if not 0 <= value <= MAX_NUMBER:  # nor NaN
            shown = "too large" if value > MAX_NUMBER else value
            raise UsageError(f"{self.kind}.{name} is {shown}", hint=f"0 to {MAX_NUMBER}")
        return float(value)

    def table(self, name: str) -> Options:
        """A table within; empty when it is missing."""
        return Options(f"{self.kind}.{name}", self._left.pop(name, None) or {})

    def tables(self, name: str) -> list[Options]:
        """A list of tables; empty when it is missing."""
        value = self._take(name, [], (list,), "a list of tables")
        return [Options(f"{self.kind}.{name}", table) for table in value]

    def headers(self, name: str) -> dict[str, str]:
        """Headers of HTTP: names are tokens, values printable ASCII."""
        value = self._take(name, {}, (dict,), "a table of strings")
        for key, text in value.items():
            if not is_header(key, text):
                raise UsageError(
                    f"{self.kind}.{name}: {key!r} is not a header that HTTP can carry",
                    hint='{"Name": "value"}, both of ASCII letters',
                )
        return dict(value)

    def url(self, name: str) -> Url | None:
        """An http or https URL without credentials; None when it is missing or empty."""
        text = self.text(name, "")
        return parse_url(text, f"{self.kind}.{name}") if text else None

    def ignore(self, *names: str) -> None:
        for name in names:
            self._left.pop(name, None)

    def end(self) -> None:
        if self._left:
            raise UsageError(
                f"{self.kind} has no option {', '.join(sorted(self._left))}",
                hint="check the spelling against docs/backends.md",
            )
