"""``config``: the settings that are in force here, and where each comes from."""

from __future__ import annotations

import argparse
import json

from nydus_fscache.cli.output import table
from nydus_fscache.config import settings

NAME = "config"
HELP = "show or check the configuration file"
EXAMPLES = """\
examples:
  nydus-fscache config
  NYDUS_FSCACHE_CONFIG=new.toml nydus-fscache config && mv new.toml /etc/nydus-fscache/config.toml
  nydus-fscache config --example > /etc/nydus-fscache/config.toml

The file is /etc/nydus-fscache/config.toml, or $NYDUS_FSCACHE_CONFIG. Options win over variables of
the environment, those over the file. A running daemon takes it up at nydus-fscache upgrade.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Show every setting, its value, and whether it comes from the environment, the "
        "configuration file or is built in. Fails when the file is wrong.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--example", action="store_true", help="print a file with all defaults")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.example:
        print(settings.example(), end="")
        return 0
    file, found = settings.config_file(), settings.in_force()
    if args.json:
        values = {
            s.key.name: {"value": s.value, "from": s.source, "variable": s.key.variable}
            for s in found
        }
        document = {"file": str(file), "exists": file.exists(), "settings": values}
        print(json.dumps(document, indent=1))
        return 0
    print(f"{file}{'' if file.exists() else ' (does not exist)'}\n")
    rows = [[s.key.name, s.value or "-", s.source, s.key.variable] for s in found]
    print(table(["KEY", "VALUE", "FROM", "VARIABLE"], rows))
    return 0
