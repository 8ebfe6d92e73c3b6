"""``nydusify mount`` (``view``): an image's tree at a directory, until a signal comes.

A daemon of its own serves it, out of the work directory: whatever else runs on the
machine is not touched.  At the end, or when somebody unmounted it, the mount, the daemon
and its data are gone; what a kill left is ended by the next run (``convert.workdir``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from nydus_fscache.api.client import Client
from nydus_fscache.cli.fscache.busy import explained
from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.interrupted import Interrupted
from nydus_fscache.cli.nydusify.options import NO_ENV, Arguments, Option
from nydus_fscache.convert import trace
from nydus_fscache.convert.builder import secret_file
from nydus_fscache.convert.check import platform_for
from nydus_fscache.convert.errors import ConvertError
from nydus_fscache.convert.workdir import WorkDir, end_daemon
from nydus_fscache.errors import MountpointError, NotPrivileged
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.leftovers import Leftover
from nydus_fscache.registry.manifest import nydus_image
from nydus_fscache.registry.store import read_blob

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
PATIENT = True  # an unmount takes as long as it takes
_OWN = (sys.executable, "-m", "nydus_fscache")
_TRACE_WAIT_S = 2.0
_LOOK_S = 1.0  # how often it is looked whether somebody unmounted it


def run(args: Arguments, stop: threading.Event) -> None:
    if os.geteuid() != 0:
        raise NotPrivileged("mounting needs root", hint="nydusify check compares without it")
    architecture = platform_for(args.text("platform")).architecture
    name = ImageName.parse(args.text("target"))
    with WorkDir(Path(args.text("work-dir"))) as work, Registries() as registries:
        repository = registries.open(name, common.trust_of(args, "target", name, name))
        document = trace.image_of(repository, name.reference.manifest, architecture)
        image = nydus_image(document.json, str(name))
        ahead = args.flag("prefetch")
        search = None if ahead else trace.Search(repository, document.digest, image)
        data = extract_bootstrap(read_blob(repository, image.bootstrap, LAYER_LIMIT))
        boot, root = work.path / "image.boot", work.daemon
        boot.write_bytes(data)
        kind, config = common.backend_of(args) or common.registry_backend(repository)
        with secret_file(work.path / "backend.json", {"type": kind, kind: config}) as backend:
            words = [str(boot), "--backend", str(backend)]
            if search is None:
                words += ["--prefetch", "all"]
            else:
                kept = root / "images" / f"{hashlib.sha256(data).hexdigest()}.trace"
                search.keep_as(kept, _TRACE_WAIT_S)
            _serve(Path(args.text("mount-path")).absolute(), words, root, stop)


def _serve(point: Path, words: list[str], root: Path, stop: threading.Event) -> None:
    made = not point.exists()
    # A signal may come before the block, or within its end.
    leftover = Leftover(lambda: _end(point, root, made=made))
    try:
        point.mkdir(parents=True, exist_ok=True)
        image, *more = words
        try:
            _call("mount", image, str(point), "--root", str(root), *more)
        except ConvertError as e:
            raise ConvertError(f"{e}{_last_words(root)}") from e
        log.info("Please send signal SIGINT/SIGTERM to umount the file system")
        try:
            while os.path.ismount(point) and not stop.wait(_LOOK_S):
                pass
            log.info("%s was unmounted", point)
        except Interrupted as e:
            log.info("Received Signal: %s", e.word)
    finally:
        try:
            _end(point, root, made=made)
        except MountpointError:
            leftover.forget()  # it is told, and stays
            raise
        leftover.forget()


def _end(point: Path, root: Path, *, made: bool) -> None:
    """A tree in use is served on, so that its readers get the right bytes."""
    try:
        end_daemon(root)
    except MountpointError as e:
        raise MountpointError(
            str(explained(e, Client(root), str(point))),
            hint=f"end what uses it, umount {point}, and the next nydusify with this --work-dir"
            " ends the daemon",
        ) from e
    if made:
        point.rmdir()


def _last_words(root: Path) -> str:
    """Of the daemon: its log goes with the work directory."""
    try:
        lines = (root / "daemon.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "".join(f"; {line}" for line in lines[-5:])


def _call(*words: str) -> None:
    """Our own command; its last words when it fails."""
    done = subprocess.run(
        [*_OWN, *words], capture_output=True, check=False, process_group=0, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        raise ConvertError(f"{words[0]}: {said}")
