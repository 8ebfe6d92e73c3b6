"""``nydusify copy``: an image to another place, unchanged."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import NO_ENV, Arguments, Option
from nydus_fscache.cli.nydusify.progress import Board
from nydus_fscache.convert.copy import Copy
from nydus_fscache.convert.move import Attempts
from nydus_fscache.convert.run import Place
from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.errors import UsageError
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName

HELP = "Copy an image from source to target"
EXAMPLES = """\
   nydusify copy --source registry.example/app:1 --target other.example/app:1
   nydusify copy --source registry.example/app:1 --all-platforms --target file:///tmp/app.tar
   nydusify copy --source file://layout/ --target localhost:5000/app:1
"""
_FILE = "file://"
OPTIONS = (
    Option("source", "the image, or file://PATH of an archive or a layout", required=True,
           value="REF"),
    Option("target", "its new place, likewise", value="REF"),
    common.insecure("source"), common.insecure("target"), common.PLAIN_HTTP, common.LOGIN,
    *common.backend("source"), *common.PLATFORMS,
    Option("push-chunk-size", "accepted: parts have the size that registries take", "0MB",
           env=(NO_ENV,), value="SIZE"),
    common.work_dir("./tmp"), common.NYDUS_IMAGE,
)  # fmt: skip


def run(args: Arguments, stop: threading.Event) -> None:
    common.chunk_bytes(args.text("push-chunk-size"))
    if not args.text("target"):
        raise UsageError("--target is required", hint="a reference, or file://PATH")
    backend = common.backend_of(args, "source")
    source, target = _place(args, "source"), _place(args, "target")
    with ExitStack() as stack:
        work = stack.enter_context(WorkDir(Path(args.text("work-dir"))))
        registries = stack.enter_context(Registries())
        board = stack.enter_context(Board())
        blobs = common.open_backend(backend, stack)
        copy = Copy(
            registries, work.path, stop=stop, progress=board, attempts=Attempts(), backend=blobs
        )
        every = args.flag("all-platforms")
        copy.run(source, target, common.platforms_of(args), every=every)


def _place(args: Arguments, side: str) -> Place:
    text = args.text(side)
    other = args.text("source" if side == "target" else "target")
    if text.startswith(_FILE):
        # An archive has no name of its own: the other side's, where that is one.
        name = "image" if other.startswith(_FILE) else other
        path = text.removeprefix(_FILE) or "."
        return Place(ImageName.parse(name), path=Path(path), layout=path.endswith("/"))
    source, target = (
        None if args.text(one).startswith(_FILE) else ImageName.parse(args.text(one))
        for one in ("source", "target")
    )
    return common.place_of(args, side, text, target, source=source)
