"""What building takes of memory: arenas of a fixed size, and a few hundred bytes for a file."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

_FILES = 10_000
_BYTES_PER_FILE = 900  # a tree of objects, and a bootstrap in memory, took 1,300

# Not ru_maxrss, which a process has of whoever forked it.
_BUILD = """
import sys
from rafs_v6.cli import main
assert main(sys.argv[1:]) == 0
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


def _peak(work: Path, files: int) -> int:
    """Bytes of memory at most, to build an image of so many small files."""
    work.mkdir()
    with tarfile.open(work / "tar", "w") as tar:
        for i in range(files):
            info = tarfile.TarInfo(f"{i % 50}/file-{i:06}")
            info.size = 6
            tar.addfile(info, io.BytesIO(b"%06d" % i))
    argv = ["create", "-t", "tar-rafs", "--compressor", "none", "--threads", "1"]
    argv += ["-B", f"{work}/boot", "-D", str(work), f"{work}/tar"]
    run = subprocess.run([sys.executable, "-c", _BUILD, *argv], stdout=subprocess.PIPE, check=True)
    return int(run.stdout.split()[-1]) << 10


def test_a_file_takes_few_bytes(tmp_path: Path) -> None:
    more = _peak(tmp_path / "many", _FILES + 500) - _peak(tmp_path / "few", 500)
    assert more < _FILES * _BYTES_PER_FILE
