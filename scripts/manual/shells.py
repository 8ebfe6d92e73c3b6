"""Completions for bash, zsh and fish: commands, options and the values that options have."""

from __future__ import annotations

import re
import shlex

from model import DIRECTORY, FILE, Command, Option


def _words(command: Command) -> list[str]:
    return command.name.split(" ")[1:]


def _names(option: Option) -> list[str]:
    return list(option.names)


# -- bash ----------------------------------------------------------------------------------------


def bash(top: Command) -> str:
    """The command that is completed is found word by word; then its options and values."""
    function = "_" + re.sub(r"\W", "_", top.name)
    lines = [
        f"# bash completion of {top.name}",
        f"{function}() {{",
        "    local cur prev path= i word",
        "    COMPREPLY=()",
        '    cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}',
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        "        word=${COMP_WORDS[i]}",
        '        case "$path $word" in',
    ]
    paths = [" ".join(["", *_words(c)]) for c in top.walk() if _words(c)]
    if paths:
        either = "|".join(shlex.quote(path) for path in paths)
        lines.append(f'        {either}) path="$path $word" ;;')
    else:
        lines.append("        *) ;;")
    lines += ["        esac", "    done", '    case "$path" in']
    for command in top.walk():
        path = shlex.quote("".join(f" {word}" for word in _words(command)))
        lines += [f"    {path})", "        case $prev in"]
        for option in command.options:
            if option.value:
                names = "|".join(_names(option))
                lines.append(f"        {names}) {_bash_value(option)}; return ;;")
        lines.append("        esac")
        options = " ".join(name for option in command.options for name in _names(option))
        others = [c.name.split(" ")[-1] for c in command.commands]
        lines += [
            "        if [[ $cur == -* ]]; then",
            f"            COMPREPLY=($(compgen -W {shlex.quote(options)} -- \"$cur\"))",
            "        else",
            f"            {_bash_words(command, others)}",
            "        fi ;;",
        ]
    lines += ["    esac", "}", f"complete -o filenames -o bashdefault -F {function} {top.name}", ""]
    return "\n".join(lines)


def _bash_value(option: Option) -> str:
    if option.choices:
        return f"COMPREPLY=($(compgen -W {shlex.quote(' '.join(option.choices))} -- \"$cur\"))"
    if option.completes == DIRECTORY:
        return 'COMPREPLY=($(compgen -d -- "$cur"))'
    if option.completes == FILE:
        return 'COMPREPLY=($(compgen -f -- "$cur"))'
    return "COMPREPLY=()"


def _bash_words(command: Command, others: list[str]) -> str:
    if others:
        return f"COMPREPLY=($(compgen -W {shlex.quote(' '.join(others))} -- \"$cur\"))"
    choices = [choice for word in command.words for choice in word.choices]
    if choices:
        return f"COMPREPLY=($(compgen -W {shlex.quote(' '.join(choices))} -- \"$cur\"))"
    kinds = {word.completes for word in command.words}
    if kinds == {DIRECTORY}:
        return 'COMPREPLY=($(compgen -d -- "$cur"))'
    return 'COMPREPLY=($(compgen -f -- "$cur"))' if FILE in kinds else ":"


# -- zsh -----------------------------------------------------------------------------------------


def zsh(top: Command) -> str:
    lines = [f"#compdef {top.name}", ""]
    for command in reversed(list(top.walk())):
        lines += _zsh_function(command)
    lines += [f'{_zsh_name(top)} "$@"', ""]
    return "\n".join(lines)


def _zsh_name(command: Command) -> str:
    return "_" + re.sub(r"\W", "_", command.name)


def _zsh_text(text: str) -> str:
    text = " ".join(text.split())
    return re.sub(r"([\\\[\]:`$])", r"\\\1", text)


def _zsh_function(command: Command) -> list[str]:
    specs = []
    for option in command.options:
        for name in _names(option):
            value = f":{_zsh_text(option.value)}:{_zsh_action(option)}" if option.value else ""
            specs.append(f"*{name}[{_zsh_text(option.help)}]{value}")
    if command.commands:
        specs += ["1:command:->command", "*::argument:->argument"]
    for number, word in enumerate(command.words):
        place = "*" if word.many else str(number + 1)
        specs.append(f"{place}:{_zsh_text(word.value)}:{_zsh_action(word)}")
    lines = [
        f"{_zsh_name(command)}() {{",
        "    local context state state_descr line",
        "    typeset -A opt_args",
    ]
    arguments = [" ".join(["    _arguments -S", *(f"\\\n        {shlex.quote(s)}" for s in specs)])]
    lines += arguments if specs else ["    return 0"]
    if command.commands:
        described = [
            shlex.quote(f"{child.name.split(' ')[-1]}:{_zsh_text(child.summary)}")
            for child in command.commands
        ]
        lines += [
            "    case $state in",
            "    command)",
            f"        local -a commands=({' '.join(described)})",
            "        _describe command commands ;;",
            "    argument)",
            "        case $words[1] in",
            *(
                f"        {shlex.quote(child.name.split(' ')[-1])}) {_zsh_name(child)} ;;"
                for child in command.commands
            ),
            "        esac ;;",
            "    esac",
        ]
    return [*lines, "}", ""]


def _zsh_action(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    return {DIRECTORY: "_files -/", FILE: "_files"}.get(option.completes, " ")


# -- fish ----------------------------------------------------------------------------------------


def fish(top: Command) -> str:
    lines = [f"# fish completion of {top.name}", f"complete -c {top.name} -f"]
    for command in top.walk():
        path = _words(command)
        names = " ".join(c.name.split(" ")[-1] for c in command.commands)
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in path)
        if command.commands:
            here = f"not __fish_seen_subcommand_from {names}"
            condition = f"{seen}; and {here}" if seen else here
            for child in command.commands:
                lines.append(
                    f"complete -c {top.name} -n {shlex.quote(condition)} "
                    f"-a {child.name.split(' ')[-1]} -d {shlex.quote(_one_line(child.summary))}"
                )
        else:
            condition = seen
        when = f" -n {shlex.quote(condition)}" if condition else ""
        for option in command.options:
            lines.append(f"complete -c {top.name}{when} {_fish_option(option)}")
        for word in command.words:
            if word.choices:
                choices = shlex.quote(" ".join(word.choices))
                lines.append(f"complete -c {top.name}{when} -a {choices}")
            elif word.completes == DIRECTORY:
                lines.append(f"complete -c {top.name}{when} -a '(__fish_complete_directories)'")
            elif word.completes == FILE:
                lines.append(f"complete -c {top.name}{when} -F")
    return "\n".join([*lines, ""])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fish_option(option: Option) -> str:
    out = []
    for name in option.names:
        if name.startswith("--"):
            out += ["-l", name[2:]]
        elif len(name) == 2:
            out += ["-s", name[1:]]
        else:
            out += ["-o", name[1:]]
    if option.help:
        out += ["-d", shlex.quote(_one_line(option.help))]
    if option.choices and option.value:
        out += ["-x", "-a", shlex.quote(" ".join(option.choices))]
    elif option.completes == DIRECTORY:
        out += ["-x", "-a", "'(__fish_complete_directories)'"]
    elif option.completes == FILE:
        out += ["-r", "-F"]
    elif option.value:
        out.append("-x")
    return " ".join(out)
