"""Builds the C core's test programs (csrc/test), once for each sanitizer, into build/csrc-test."""

from __future__ import annotations

import fcntl
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
OUT = ROOT / "build" / "csrc-test"
SANITIZERS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}
FLAGS = ["-O1", "-g", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
INCLUDES = [f"-I{CSRC / room}" for room in ("codec", "core", "test")]
LIBS = [f"-l{name}" for name in ("uring", "zstd", "lz4", "z", "pthread")]
WRAPPED = {  # functions that a program replaces
    "waiting": ["io_uring_submit_and_wait"],
    "write_fails": ["pwrite"],
    "shared_fill": ["pwrite"],
    "late_fill": ["pwrite"],
    "cachefiles": ["ioctl"],
    "fuse_idle": ["readv"],
    "fanotify": ["io_uring_submit", "io_uring_submit_and_wait"],
}


def programs() -> list[str]:
    return sorted(file.stem for file in (CSRC / "test").glob("*.c") if file.stem != "fake")


def _compile(source: Path, target: Path, flags: list[str]) -> None:
    newest = max(f.stat().st_mtime for f in (source, *CSRC.glob("*/*.h"), Path(__file__)))
    if target.exists() and target.stat().st_mtime >= newest:
        return
    part = target.with_suffix(".part")
    subprocess.run(["gcc", *FLAGS, *flags, *INCLUDES, "-c", source, "-o", part], check=True)
    part.replace(target)


def build(sanitizer: str) -> Path:
    """The folder with a program of each name; what is up to date is left alone."""
    out = OUT / sanitizer
    out.mkdir(parents=True, exist_ok=True)
    flags = SANITIZERS[sanitizer]
    shared = [*CSRC.glob("codec/*.c"), *CSRC.glob("core/*.c"), CSRC / "test" / "fake.c"]
    objects = {f: out / f"{f.parent.name}-{f.stem}.o" for f in shared}
    mains = {CSRC / "test" / f"{name}.c": out / f"test-{name}.o" for name in programs()}
    with (out / "lock").open("w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = [pool.submit(_compile, s, t, flags) for s, t in {**objects, **mains}.items()]
        for done in work:
            done.result()
        for source, main in mains.items():
            program = out / source.stem
            needed = [main, *objects.values()]
            if program.exists() and program.stat().st_mtime >= max(
                o.stat().st_mtime for o in needed
            ):
                continue
            wraps = [f"-Wl,--wrap={name}" for name in WRAPPED.get(source.stem, [])]
            subprocess.run(["gcc", *flags, *needed, *wraps, *LIBS, "-o", program], check=True)
    return out
