"""Writes manual pages and completions, out of the parsers of the programs.

    python scripts/manual OUT     OUT/man/man8/nydus-fscache.8, OUT/completions/{bash,zsh,fish}/…

Nothing of it is kept in the repository: what a program takes is said in its parser alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# the width that usage lines are broken at, and nothing of this machine's environment in defaults
os.environ["COLUMNS"] = "100"
for name in [n for n in os.environ if n.startswith(("NYDUS_", "CONTAINERD_", "ROCKET_"))]:
    del os.environ[name]
sys.path.insert(0, str(Path(__file__).parent))

from man import configuration_page, pages
from model import programs
from shells import bash, fish, zsh

import nydus_fscache


def main(words: list[str]) -> int:
    if len(words) != 1 or words[0].startswith("-"):
        print((__doc__ or "").strip())
        return 0 if words in (["-h"], ["--help"]) else 2
    out = Path(words[0])
    version = nydus_fscache.__version__
    files = {}
    for program in programs():
        for name, text in pages(program, version):
            files[f"man/man{name[-1]}/{name}"] = text
        top = program.top
        if not top.name.startswith("mount."):  # mount(8) calls it, nobody types it
            files[f"completions/bash/{top.name}"] = bash(top)
            files[f"completions/zsh/_{top.name}"] = zsh(top)
            files[f"completions/fish/{top.name}.fish"] = fish(top)
    name, text = configuration_page(version)
    files[f"man/man5/{name}"] = text
    for path, text in files.items():
        file = out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
