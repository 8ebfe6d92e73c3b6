#!/usr/bin/env python3
"""The tables of docs/performance.md, out of what cold.py measured.

    scripts/bench/page.py COLD.json        print them as Markdown
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_LINK = re.compile(r" (\d+)/(\d+)$")
_HEAD = (
    "run", "ms, MB/s", "mount, s", "took, s", "times the limit", "MB, of those needed",
    "requests", "CPU, s", "peak, MB", "nydusd, s", "its MB", "its requests", "its CPU, s", "ratio",
)  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    link = _LINK.search(row["run"])
    name = _LINK.sub("", row["run"]).replace(", limit: local EROFS", "")
    is_ours = row["requests"] > 0 and row["cpu_s"] > 0
    peer = row["peer_s"] > 0
    return [
        name,
        f"{link[1]}, {link[2]}" if link else "",
        f"{row['ready_s']:.2f}" if is_ours else "",
        f"{row['seconds']:.2f}",
        f"{row['ratio']:.2f}" if row["ratio"] != 1 else "",
        f"{row['fetched_mb']:.1f} of {row['needed_mb']:.1f}" if row["needed_mb"] else "",
        str(row["requests"]) if is_ours else "",
        f"{row['cpu_s']:.2f}" if is_ours else "",
        f"{row['peak_mb']:.0f}" if is_ours else "",
        f"{row['peer_s']:.2f}" if peer else "",
        f"{row['peer_mb']:.1f}" if peer else "",
        str(row["peer_requests"]) if peer else "",
        f"{row['peer_cpu_s']:.2f}" if peer else "",
        f"**{row['seconds'] / row['peer_s']:.2f}**" if peer else "",
    ]


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    rows = json.loads(Path(sys.argv[1]).read_text())
    print("| " + " | ".join(_HEAD) + " |")
    print("|" + "---|" * len(_HEAD))
    for row in rows:
        print("| " + " | ".join(line(row)) + " |")


if __name__ == "__main__":
    main()
