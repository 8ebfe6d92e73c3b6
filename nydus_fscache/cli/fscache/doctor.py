"""``doctor``: what this machine offers, and what to do where it does not suffice."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from nydus_fscache.cli.fscache.common import add_root
from nydus_fscache.errors import KernelRefused

NAME = "doctor"
HELP = "say which transports work here, why others do not, and what a nydusd would lack"
EXAMPLES = """\
examples:
  nydus-fscache doctor
  nydus-fscache doctor --root /srv/cache
  nydus-fscache doctor --json | jq .auto
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Try what kernel and machine offer; nothing stays behind. Exit code 0 when at "
        f"least one transport works, else {KernelRefused.exit_code}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.nydusd import node_checks  # noqa: PLC0415
    from nydus_fscache.transport.registry import examine  # noqa: PLC0415 - start-up time of other commands

    report, node = examine(args.root), node_checks.examine()
    if args.json:
        document = {**report.document(), "node": [asdict(finding) for finding in node]}
        print(json.dumps(document, indent=2))
    else:
        for heading, findings in (
            ("machine", report.findings),
            ("transports", report.transports),
            ("nydusd under nydus-snapshotter", node),
        ):
            print(heading)
            for finding in findings:
                print(f"  {'ok' if finding.ok else 'NO':3}{finding.name}: {finding.detail}")
                if not finding.ok:
                    print(f"     remedy: {finding.remedy}")
        print(f"auto takes {report.choice}" if report.choice else "no transport works here")
    return 0 if report.choice else KernelRefused.exit_code
