"""Adds nydus-snapshotter to containerd's configuration, or takes it out again.

    python3 containerd_config.py add|remove|check FILE

Adds the proxy plugin, a runtime handler "nydus" beside the one that is there, and the annotations
that the snapshotter reads. What we add stands between two marks at the end; a line that has to
change is kept as a comment before it, one that is new says so. Prints "changed" or "unchanged";
exit status 1 when the file cannot be understood, and nothing is written then. Versions 2 and 3 of
the file, containerd 1.7 on.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

BEGIN, END, WAS = "# >>> nydus-fscache", "# <<< nydus-fscache", "# nydus-fscache had: "
NEW = "  # of nydus-fscache"
SOCKET = "/run/containerd-nydus/containerd-nydus-grpc.sock"
IMAGES = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}
RUNTIME = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
KEY = "disable_snapshot_annotations"


def without(text: str) -> str:
    """As it was before ``add``."""
    text = re.sub(rf"\n?{re.escape(BEGIN)}\n.*?{re.escape(END)}\n", "", text, flags=re.S)
    text = re.sub(rf"^.*{re.escape(NEW)}\n", "", text, flags=re.M)
    return re.sub(rf"^([ \t]*){re.escape(WAS)}(.*)\n.*\n", r"\1\2\n", text, flags=re.M)


def added(text: str) -> str:
    text = without(text)
    document = tomllib.loads(text)
    version = document.get("version", 1)
    if version not in IMAGES:
        raise ValueError(f"version {version} of the file is not known: 2 or 3")
    plugins = document.get("plugins", {})
    images = plugins.get(IMAGES[version], {})
    images = images.get("containerd", {}) if version == 2 else images
    lines = [BEGIN]
    if images.get(KEY) is not False:
        text, was_there = re.subn(
            rf"^([ \t]*)({KEY}[ \t]*=.*)$", rf"\1{WAS}\2\n\1{KEY} = false", text, flags=re.M
        )
        if not was_there:
            table = f"plugins.'{IMAGES[version]}'" + (".containerd" if version == 2 else "")
            text = _with_key(text, table, lines)
    runtimes = plugins.get(RUNTIME[version], {}).get("containerd", {}).get("runtimes", {})
    options = runtimes.get("runc", {}).get("options", {})
    handler = f"plugins.'{RUNTIME[version]}'.containerd.runtimes.nydus"
    lines += [
        "[proxy_plugins.nydus]", '  type = "snapshot"', f'  address = "{SOCKET}"',
        f"[{handler}]", '  runtime_type = "io.containerd.runc.v2"', '  snapshotter = "nydus"',
        f"[{handler}.options]", *(f"  {name} = {_toml(v)}" for name, v in options.items()), END,
    ]  # fmt: skip
    new = f"{text.rstrip()}\n\n" + "\n".join(lines) + "\n"
    made = tomllib.loads(new)  # our lines must not clash with those that are there
    assert made["proxy_plugins"]["nydus"]["address"] == SOCKET
    return new


def _with_key(text: str, table: str, lines: list[str]) -> str:
    """Below the table's head where there is one, else in ``lines`` with a head of its own."""
    head = re.escape(table).replace("'", "[\"']")
    new, found = re.subn(
        rf"^([ \t]*\[{head}\][^\n]*\n)", rf"\1{KEY} = false{NEW}\n", text, count=1, flags=re.M
    )
    if not found:
        lines += [f"[{table}]", f"  {KEY} = false"]
    return new


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    raise ValueError(f"runc has an option that is not simple: {value!r}")


def main(words: list[str]) -> int:
    if len(words) != 2 or words[0] not in ("add", "remove", "check"):
        print((__doc__ or "").strip())
        return 2
    how, file = words[0], Path(words[1])
    try:
        old = file.read_text() if file.exists() else "version = 2\n"
        new = without(old) if how == "remove" else added(old)
        tomllib.loads(new)
    except (ValueError, OSError) as e:
        print(f"{file}: {e}", file=sys.stderr)
        return 1
    is_same = new == old and file.exists()
    if not is_same and how != "check":
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_text(new)
        if file.exists():
            temporary.chmod(file.stat().st_mode & 0o777)
        os.replace(temporary, file)
    print("unchanged" if is_same else "changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
