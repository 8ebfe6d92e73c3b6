"""The programs as their parsers describe them: the one source of manual pages and completions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

FILE, DIRECTORY, NOTHING = "file", "directory", ""
_DIRECTORIES = ("DIR", "DIRECTORY", "MOUNTPOINT", "TARGET")
_FILES = ("FILE", "PATH", "BOOTSTRAP", "IMAGE", "SOCKET", "SOURCE")


@dataclass(frozen=True)
class Option:
    """``names``: with their dashes, none of a word without; ``value``: what it is called, "" of a
    flag; ``completes``: FILE, DIRECTORY or NOTHING, if there are no ``choices``."""

    names: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...] = ()
    completes: str = NOTHING
    many: bool = False


@dataclass
class Command:
    """A program, or one of its commands; ``name``: with those before it."""

    name: str
    summary: str
    description: str
    usage: str
    examples: str
    options: list[Option] = field(default_factory=list)
    words: list[Option] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)

    def walk(self) -> Iterator[Command]:
        yield self
        for command in self.commands:
            yield from command.walk()


@dataclass(frozen=True)
class Program:
    section: int
    top: Command
    page_each: bool = False  # a manual page for each command


def of_argparse(parser: argparse.ArgumentParser, summary: str = "") -> Command:
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    made = Command(
        parser.prog, summary, parser.description or summary, usage, parser.epilog or ""
    )
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {c.dest.split(" ")[0]: c.help or "" for c in action._choices_actions}
            seen: set[int] = set()
            for name, child in action.choices.items():
                if id(child) not in seen:  # an alias is the same parser again
                    seen.add(id(child))
                    made.commands.append(of_argparse(child, helps.get(name, "")))
        elif action.help is not argparse.SUPPRESS:
            (made.options if action.option_strings else made.words).append(_option(action, parser))
    return made


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> Option:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    value = ""
    if action.nargs != 0:
        value = metavar or ("|".join(map(str, action.choices)) if action.choices else
                            action.dest.upper().replace("_", "-"))  # fmt: skip
    help_ = action.help or ""
    if "%(" in help_ or "%%" in help_:
        help_ = parser._get_formatter()._expand_help(action)
    choices = tuple(map(str, action.choices or ()))
    return Option(
        tuple(action.option_strings), value, help_, choices, completes_of(value),
        action.nargs in ("*", "+"),
    )  # fmt: skip


def completes_of(value: str) -> str:
    """By the name that the help has for it."""
    words = {word.partition(".")[0].strip("[]").upper() for word in value.split("|")}
    if words & set(_DIRECTORIES) and not words & set(_FILES):
        return DIRECTORY
    return FILE if words & {*_FILES, *_DIRECTORIES} else NOTHING


def of_nydusify() -> Command:
    from nydus_fscache.cli.nydusify import main  # its own parser, as the original's words are
    from nydus_fscache.cli.nydusify.options import Option as Theirs

    def options(theirs: Sequence[Theirs]) -> list[Option]:
        return [
            Option(
                tuple(f"-{n}" if len(n) == 1 else f"--{n}" for n in (o.name, *o.aliases)),
                "" if o.is_flag else o.value or "VALUE", o.help,
                completes=NOTHING if o.is_flag else completes_of(o.value or _kind_of(o.name)),
                many=o.many,
            )
            for o in theirs if not o.hidden
        ]  # fmt: skip

    top = Command(
        main.PROG, "convert, check, copy and mount Nydus images",
        "Convert, check, copy and mount Nydus images between registries, OCI layouts and archives.",
        f"{main.PROG} [GLOBAL OPTIONS] COMMAND [OPTIONS]", "", options(main._GLOBAL),
    )  # fmt: skip
    for name in main.COMMANDS:
        module = main._module(name)
        words = " WORD" if hasattr(module, "WORDS") else ""
        command = Command(
            f"{main.PROG} {name}", module.HELP, f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            f"{main.PROG} {name}{words} [OPTIONS]", f"examples:\n{module.EXAMPLES}",
            options(main._options(name)),
        )  # fmt: skip
        if words:
            command.words.append(Option((), "WORD", "what to do", tuple(module.WORDS)))
        top.commands.append(command)
    return top


def _kind_of(name: str) -> str:
    if name.endswith(("-dir", "-directory")):
        return "DIR"
    return "FILE" if name.endswith(("file", "path", "-json", "bootstrap", "-image")) else ""


def programs() -> list[Program]:
    from nydus_fscache.cli import (
        backend_proxy,
        ctr_remote,
        mount_helper,
        nydusctl,
        nydusd,
        overlayfs,
    )
    from nydus_fscache.cli.fscache import main as fscache
    from rafs_v6 import cli as image

    overlay = Command(
        overlayfs.PROG, "mount an overlay without the options that are meant for Kata Containers",
        overlayfs._USAGE.partition("\n\n")[2].strip(),
        overlayfs._USAGE.partition("\n")[0].removeprefix("usage: "), "",
    )  # fmt: skip
    return [
        Program(8, of_argparse(
            fscache.parser_for(fscache.COMMANDS), "container images loaded lazily into the kernel"
        ), page_each=True),
        Program(8, of_argparse(mount_helper.parser(), "mount a container image by mount(8)")),
        Program(8, of_argparse(nydusd.parser(), "images mounted by the kernel, for snapshotters")),
        Program(1, of_argparse(nydusctl.parser(), "ask a running nydusd")),
        Program(1, of_argparse(ctr_remote.parser(), "pull images lazily into containerd")),
        Program(1, of_argparse(
            image.parser([]), "build, merge, check, compare and take apart RAFS v6 images"
        ), page_each=True),
        Program(1, of_nydusify(), page_each=True),
        Program(8, of_argparse(backend_proxy.parser(), "serve a directory of blobs as a registry")),
        Program(8, overlay),
    ]  # fmt: skip
