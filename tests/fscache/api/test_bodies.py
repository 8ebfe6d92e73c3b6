"""Calls give back the memory that they read a bootstrap through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Threads of calls that live beside each other, as those of the API do; KiB that stay of them.
CALLS = """
import sys, threading
from pathlib import Path
from nydus_fscache.api.bodies import open_bootstrap

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])

def call():
    for _ in range(3):
        with open_bootstrap(sys.argv[1]) as (size, pieces):
            assert sum(map(len, pieces())) == size
    together.wait()

call_one = threading.Thread(target=lambda: open_bootstrap(sys.argv[1]))
call_one.start(), call_one.join()
before, together = resident(), threading.Barrier(9)
threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait()
for thread in threads:
    thread.join()
print(resident() - before)
"""


def test_memory_goes_back(tmp_path: Path) -> None:
    (tmp_path / "boot").write_bytes(bytes(100_000))
    done = subprocess.run(
        [sys.executable, "-c", CALLS, tmp_path / "boot"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert int(done.stdout) < 8 << 10, "of 8 threads; 4 MiB each they were once"
