"""Words of the command line, as the original's parser takes them.

``-name`` and ``--name`` are one; ``--name v`` and ``--name=v``; environment twins.  A true or
false behind a boolean is taken as its value; any other word that is no option is an
error, as options behind it would be passed over in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

log = logging.getLogger("nydusify")

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
NO_ENV = "-"


@dataclass(frozen=True, slots=True)
class Option:
    """``default`` False makes it a boolean.  ``env``: empty for the name in capitals."""

    name: str
    help: str = ""
    default: str | bool = ""
    aliases: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    required: bool = False
    many: bool = False
    hidden: bool = False
    value: str = ""  # what it is called in the help
    secret: bool = False  # its value may have a password in it

    @property
    def is_flag(self) -> bool:
        return isinstance(self.default, bool)

    def variables(self) -> tuple[str, ...]:
        if self.env == (NO_ENV,):
            return ()
        return self.env or (self.name.upper().replace("-", "_"),)

    def title(self) -> str:
        names = ", ".join(
            f"-{name}" if len(name) == 1 else f"--{name}" for name in (self.name, *self.aliases)
        )
        return names if self.is_flag else f"{names} {self.value or 'VALUE'}"


class IncorrectUsage(UsageError):
    """Told with the command's help, as the original does."""


class Arguments:
    """The values of a command's options."""

    def __init__(self, options: Sequence[Option]) -> None:
        self._options = {option.name: option for option in options}
        self._values: dict[str, list[str]] = {}
        self.rest: list[str] = []

    def given(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str:
        values = self._values.get(name)
        return values[-1] if values else str(self._options[name].default)

    def flag(self, name: str) -> bool:
        values = self._values.get(name)
        return values[-1] == "true" if values else bool(self._options[name].default)

    def texts(self, name: str) -> list[str]:
        """Of an option that may be repeated; commas separate, too."""
        return [word for value in self._values.get(name, []) for word in value.split(",") if word]

    def number(self, name: str) -> int:
        try:
            return int(self.text(name), 0)
        except ValueError:
            raise IncorrectUsage(
                f'invalid value "{self.text(name)}" for flag -{name}: parse error'
            ) from None

    def add(self, option: Option, value: str) -> None:
        known = self._values.setdefault(option.name, [])
        if not option.many:
            known.clear()
        known.append(value)


def parse(
    options: Sequence[Option], words: Sequence[str], environ: Mapping[str, str], *,
    stop_at_word: bool = False,
) -> Arguments:  # fmt: skip
    """``stop_at_word``: what begins with the first word is left in ``rest``, a command."""
    found = Arguments(options)
    by_name = {name: option for option in options for name in (option.name, *option.aliases)}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--" or not word.startswith("-") or word == "-":
            if stop_at_word:
                found.rest = [word, *rest]
                break
            if word != "--" or rest:
                raise IncorrectUsage(
                    f"unexpected argument {word!r}", hint="options are --name VALUE; see --help"
                )
            break
        name, equals, value = word.lstrip("-").partition("=")
        option = by_name.get(name)
        if option is None:
            raise IncorrectUsage(f"flag provided but not defined: -{name}")
        if option.is_flag:
            if not equals and rest and rest[0] in ("true", "false"):
                equals, value = "=", rest.pop(0)
            found.add(option, _boolean(value if equals else "true", name))
        elif equals:
            found.add(option, value)
        elif rest:
            found.add(option, rest.pop(0))
        else:
            raise IncorrectUsage(f"flag needs an argument: -{name}")
    for option in options:
        _from_environment(option, found, environ)
    return found


def _from_environment(option: Option, found: Arguments, environ: Mapping[str, str]) -> None:
    if found.given(option.name):
        return
    for variable in option.variables():
        value = environ.get(variable, "")
        if value:
            # The names are common words: a value that comes so should not be a riddle.
            shown = "set" if option.secret else repr(value)
            log.info("--%s is %s by the environment: $%s", option.name, shown, variable)
            found.add(option, _boolean(value, option.name) if option.is_flag else value)
            return


def check_required(options: Sequence[Option], found: Arguments) -> None:
    missing = [o.name for o in options if o.required and not found.text(o.name)]
    if len(missing) == 1:
        raise IncorrectUsage(f'Required flag "{missing[0]}" not set')
    if missing:
        names = ", ".join(missing)
        raise IncorrectUsage(f'Required flags "{names}" not set')


def _boolean(value: str, name: str) -> str:
    if value in _TRUE:
        return "true"
    if value in _FALSE:
        return "false"
    raise IncorrectUsage(f'invalid boolean value "{value}" for -{name}: parse error')


def help_lines(options: Sequence[Option]) -> str:
    lines = []
    for option in options:
        if option.hidden:
            continue
        notes = option.help
        if option.default:
            notes += f' (default: "{option.default}")'
        if option.variables():
            notes += f" [{', '.join('$' + v for v in option.variables())}]"
        lines.append(f"   {option.title():<34} {notes}".rstrip())
    return "\n".join(lines)
