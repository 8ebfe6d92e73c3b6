"""Reads a document of nydusd field by field: types are checked, unknown names are noted.

nydusd ignores members that it does not know, and so must a drop-in: tools write members of
their own.  They are collected, so that somebody may log them.  A value of the wrong type is
an error that names its path in the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nydus_fscache.errors import UsageError

# values that are not shown, whatever is wrong with them
_SECRETS = ("auth", "registry_token", "access_key_secret", "session_token", "encryption_key")
_BIGGEST = (1 << 63) - 1


_MAX_ID = (1 << 32) - 2  # the last one means none


class Fields:
    """One table of a document.  ``where``: its name, for messages; ``path``: of this table."""

    def __init__(self, table: Any, where: object, path: str = "") -> None:
        self.where = where
        self.path = path
        if not isinstance(table, Mapping):
            raise self.wrong("", table, "a table")
        self._rest: dict[str, Any] = dict(table)

    def __contains__(self, name: str) -> bool:
        return self._rest.get(name) is not None

    def at(self, name: str) -> str:
        """The path of a member."""
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def wrong(self, name: str, value: Any, wanted: str) -> UsageError:
        place = self.at(name)
        shown = f"a {type(value).__name__}" if name in _SECRETS else repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return UsageError(
            f"{self.where}: {place or 'the document'} is {shown}", hint=f"it must be {wanted}"
        )

    def missing(self, name: str) -> UsageError:
        return UsageError(f"{self.where}: {self.at(name)} is missing", hint="add it")

    def _take(self, name: str) -> Any:
        return self._rest.pop(name, None)

    def text(self, name: str, default: str | None = "") -> str:
        """``default`` None: it must be there."""
        value = self._take(name)
        if value is None:
            if default is None:
                raise self.missing(name)
            return default
        if not isinstance(value, str):
            raise self.wrong(name, value, "a string")
        return value

    def choice(self, name: str, default: str | None, *choices: str) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise self.wrong(name, value, f"one of {', '.join(c or '(empty)' for c in choices)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def whole(self, name: str, default: int, least: int = 0, most: int = _BIGGEST) -> int:
        """A whole number."""
        value = self._take(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            to = f" to {most}" if most != _BIGGEST else " or more"
            raise self.wrong(name, value, f"a whole number, {least}{to}")
        return value

    def plain_number(self, name: str, most: int) -> int | float:
        """As it stands in the document, which must have it."""
        value = self._take(name)
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not right or not 0 <= value <= most:  # nor NaN
            raise self.wrong(name, value, f"a number, 0 to {most}")
        number: int | float = value
        return number

    def id_mapping(self, name: str) -> tuple[int, int, int] | None:
        """Of owners: the first within, the first outside, how many."""
        value = self._take(name)
        if value is None:
            return None
        wanted = "three numbers: the first id within, the first outside, how many"
        if not isinstance(value, list) or len(value) != 3:
            raise self.wrong(name, value, wanted)
        for one in value:
            if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one <= _MAX_ID:
                raise self.wrong(name, value, wanted)
        inside, outside, count = value
        if not 0 < count <= _MAX_ID - max(inside, outside) + 1:
            raise self.wrong(name, value, f"{wanted}, all of them at most {_MAX_ID}")
        return inside, outside, count

    def texts(self, name: str) -> list[str]:
        value = self._take(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list of strings")
        for number, text in enumerate(value):
            if not isinstance(text, str):
                raise self.wrong(f"{name}[{number}]", text, "a string")
        return list(value)

    def text_table(self, name: str) -> dict[str, str]:
        value = self._take(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(name, value, "a table of strings")
        for key, text in value.items():
            if not isinstance(text, str):
                raise self.wrong(f"{name}.{key}", text, "a string")
        return dict(value)

    def table(self, name: str) -> Fields | None:
        """None when it is missing."""
        value = self._take(name)
        return None if value is None else Fields(value, self.where, self.at(name))

    def needed_table(self, name: str) -> Fields:
        table = self.table(name)
        if table is None:
            raise self.missing(name)
        return table

    def tables(self, name: str) -> list[Fields]:
        value = self._take(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list of tables")
        return [
            Fields(entry, self.where, f"{self.at(name)}[{number}]")
            for number, entry in enumerate(value)
        ]

    def drop(self, name: str) -> None:
        """It is known and does not matter."""
        self._rest.pop(name, None)

    def rest(self) -> list[str]:
        """Paths of the members that nobody took."""
        return [self.at(name) for name in self._rest]
