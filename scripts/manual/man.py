"""Manual pages (man(7)) of commands, and of the configuration file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from model import Command, Option, Program

from nydus_fscache.config import settings


def pages(program: Program, version: str) -> Iterator[tuple[str, str]]:
    """File names and texts."""
    top = program.top
    each = program.page_each
    yield f"{top.name}.{program.section}", _page(top, program, version, inline=not each)
    if each:
        for command in top.commands:
            name = command.name.replace(" ", "-")
            yield f"{name}.{program.section}", _page(command, program, version, inline=True)


def _page(command: Command, program: Program, version: str, *, inline: bool) -> str:
    name, section = command.name.replace(" ", "-"), program.section
    lines = [
        _header(name, section, version),
        ".SH NAME", f"{_text(name)} \\- {_text(command.summary or command.description)}",
        ".SH SYNOPSIS", ".nh", ".ad l", _text(command.usage), ".ad", ".hy",
        ".SH DESCRIPTION", *_paragraphs(command.description),
        *_options(command, ".SH"),
    ]  # fmt: skip
    if command.commands:
        lines.append(".SH COMMANDS")
        for child in command.commands:
            if inline:
                lines += [f".SS {_quoted(child.name)}", *_inline(child)]
            else:
                page = child.name.replace(" ", "-")
                lines += [".TP", f".BR {_text(page)} ({section})", _sentence(child.summary)]
    lines += _examples(command.examples)
    others = [program.top.name] if command is not program.top else []
    if others or name != "nydus-fscache":
        seen = sorted({*others, "nydus-fscache"} - {name})
        refs = [
            f".BR {_text(n)} ({8 if n == 'nydus-fscache' else section})" for n in seen
        ]
        lines += [".SH SEE ALSO", *refs]
    return "\n".join([*lines, ""])


def _header(name: str, section: int, version: str) -> str:
    when = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
    date, source = time.strftime("%Y-%m-%d", when), _quoted(f"nydus-fscache {version}")
    return f".TH {_quoted(name.upper())} {section} {date} {source}"


def _inline(command: Command) -> list[str]:
    usage = [".nh", ".ad l", _text(command.usage), ".ad", ".hy", ".PP"]
    lines = [*usage, *_paragraphs(command.description)]
    lines += _options(command, "")
    for child in command.commands:
        lines += [".PP", f"\\fB{_text(child.name)}\\fR", *_inline(child)]
    return lines


def _options(command: Command, heading: str) -> list[str]:
    lines: list[str] = []
    for title, found in (("ARGUMENTS", command.words), ("OPTIONS", command.options)):
        if found and heading:
            lines.append(f"{heading} {title}")
        for option in found:
            lines += [".TP", _term(option), _sentence(option.help) or "\\&"]
    return lines


def _term(option: Option) -> str:
    value = f"\\fI{_text(option.value)}\\fR" if option.value else ""
    if not option.names:
        return value + ("..." if option.many else "")
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.names)
    return f"{names} {value}".rstrip()


def _examples(epilog: str) -> list[str]:
    """``examples:`` and what is indented below; other paragraphs are notes."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", epilog.strip("\n")):
        if not block.strip():
            continue
        head, _, rest = block.partition("\n")
        if re.fullmatch(r"examples?:", head.strip(), re.I):
            lines += [".SH EXAMPLES", ".nf", *(_text(line) for line in rest.splitlines()), ".fi"]
        else:
            lines += [".SH NOTES" if ".SH NOTES" not in lines else ".PP", _paragraph(block)]
    return lines


def _paragraphs(text: str) -> list[str]:
    found = [_paragraph(part) for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    return [line for n, part in enumerate(found) for line in ([".PP"] if n else []) + [part]]


def _paragraph(text: str) -> str:
    return _text(" ".join(text.split()))


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    if not text:
        return ""
    return _text(text[0].upper() + text[1:] + ("" if text.endswith((".", "?", ")")) else "."))


def _text(text: str) -> str:
    r"""A line may not begin with a dot or an apostrophe; "-" is a minus where it is typed."""
    out = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("'", "\\(aq")
    out = out.replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    out = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", out)
    return re.sub(r"^(?=\.)", r"\\&", out)


def _quoted(text: str) -> str:
    return '"' + _text(text).replace('"', '""') + '"'


def configuration_page(version: str) -> tuple[str, str]:
    lines = [
        _header("nydus-fscache.toml", 5, version),
        ".SH NAME", "nydus\\-fscache.toml \\- configuration of a node with nydus\\-fscache",
        ".SH SYNOPSIS", _text(str(settings.DEFAULT_FILE)),
        ".SH DESCRIPTION",
        *_paragraphs(
            "A file in TOML (https://toml.io); it may be missing. Each key has a variable of the "
            "environment, too. Options win over variables, those over the file. A key that does "
            "not exist or a value that cannot be is an error of every command.\n\n"
            f"${settings.FILE} names another file. A running daemon takes changes up at the next "
            "nydus-fscache upgrade (systemctl reload nydus-fscache)."
        ),
        ".SH KEYS",
    ]  # fmt: skip
    for key in settings.KEYS:
        default = f" Default: {key.default}." if key.default else ""
        lines += [
            ".TP", f"\\fB{_text(key.name)}\\fR", _text(f"{key.text}{default} ${key.variable}")
        ]  # fmt: skip
    lines += [".SH EXAMPLES", ".nf", "[cache]", 'limit = "50G"', "", "[metrics]",
              'listen = "127.0.0.1:9230"', ".fi", ".SH SEE ALSO",
              ".BR nydus\\-fscache (8),", ".BR nydus\\-fscache\\-config (8)"]  # fmt: skip
    return "nydus-fscache.toml.5", "\n".join([*(line or ".PP" for line in lines), ""])
