"""``nydusify mount`` (``view``): an image's tree at a directory, until a signal comes.

A daemon of its own serves it, out of the work directory: whatever else runs on the
machine is not touched.  At the end the mount, the daemon and its data are gone.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import NO_ENV, Arguments, Option
from nydus_fscache.convert import trace
from nydus_fscache.convert.errors import ConvertError
from nydus_fscache.convert.platforms import host
from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.errors import NotPrivileged, UsageError
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName

log = logging.getLogger("nydusify")

HELP = "Mount a Nydus image until a signal comes"
EXAMPLES = """\
   nydusify mount --target registry.example/app:1-nydus --mount-path /mnt/app
"""
OPTIONS = (
    Option("target", "the image", required=True, value="REF"),
    common.insecure("target"), common.PLAIN_HTTP, common.LOGIN, *common.backend(),
    Option("prefetch", "load all data ahead", False),
    Option("mount-path", "where the tree appears", "./image-fs", value="DIR"),
    Option("platform", "linux/amd64 or linux/arm64", env=(NO_ENV,)),
    common.work_dir("./tmp"),
    Option("nydusd", "accepted: our own daemon serves", "nydusd", value="PROGRAM"),
)  # fmt: skip
_OWN = (sys.executable, "-m", "nydus_fscache")


def run(args: Arguments, stop: threading.Event) -> None:
    if os.geteuid() != 0:
        raise NotPrivileged("mounting needs root", hint="nydusify check compares without it")
    if common.backend_of(args) is not None:
        raise UsageError(
            "--backend-type is not supported here", hint="nydus-fscache mount --backend FILE"
        )
    name = ImageName.parse(args.text("target"))
    point = Path(args.text("mount-path")).absolute()
    with WorkDir(Path(args.text("work-dir"))) as work, Registries() as registries:
        repository = registries.open(name, common.trust_of(args, "target", name, name))
        document = trace.image_of(repository, name.reference.manifest, host().architecture)
        made = not point.exists()
        point.mkdir(parents=True, exist_ok=True)
        root = str((work.path / "daemon").absolute())
        words = ["--prefetch", "all"] if args.flag("prefetch") else []
        if repository.client.base.scheme == "http":
            words.append("--plain-http")
        exact = f"{repository.host}/{repository.repo}@{document.digest}"
        try:
            _call("mount", exact, str(point), "--root", root, *words)
            log.info("Please send signal SIGINT/SIGTERM to umount the file system")
            stop.wait()
        finally:
            _call("umount", str(point), "--root", root, quiet=True)
            _call("stop", "--root", root, quiet=True)
            if made:
                point.rmdir()


def _call(*words: str, quiet: bool = False) -> None:
    """Our own command; its last words when it fails."""
    done = subprocess.run(
        [*_OWN, *words], capture_output=True, check=False, process_group=0, stdin=subprocess.DEVNULL
    )
    if done.returncode and not quiet:
        said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        raise ConvertError(f"{words[0]}: {said}")
