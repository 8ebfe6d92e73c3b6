"""``nydusify optimize``: an image that knows how it starts."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import NO_ENV, Arguments, Option
from nydus_fscache.cli.nydusify.progress import Board
from nydus_fscache.convert import trace
from nydus_fscache.convert.builder import Builder
from nydus_fscache.convert.move import Attempts, Mover
from nydus_fscache.convert.optimize import LIST_LIMIT, optimize
from nydus_fscache.convert.platforms import host
from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.errors import UsageError
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName

log = logging.getLogger("nydusify")

HELP = "Put the data that an image's start reads into a blob of their own"
EXAMPLES = """\
   nydusify optimize --source reg.example/app:1-nydus --target reg.example/app:1-fast \\
       --prefetch-files started.txt
   nydusify trace push --target reg.example/app:1-nydus
   nydusify optimize --source reg.example/app:1-nydus --target reg.example/app:1-fast
"""
OPTIONS = (
    Option("source", "the Nydus image", required=True, value="REF"),
    Option("target", "the result", required=True, value="REF"),
    common.insecure("source"), common.insecure("target"), common.PLAIN_HTTP, common.LOGIN,
    Option("policy", "accepted: there is one", "separated-blob-with-prefetch-files",
           env=("OPTIMIZE_POLICY",)),
    Option("prefetch-files", "paths, one a line, or the original's JSON, or a trace of our"
           " daemon; default: the trace beside the image in the registry", value="FILE"),
    Option("push-chunk-size", "accepted", "0MB", env=(NO_ENV,), value="SIZE"),
    *common.backend("source"), common.work_dir("./tmp"), common.NYDUS_IMAGE,
)  # fmt: skip


def run(args: Arguments, stop: threading.Event) -> None:
    common.chunk_bytes(args.text("push-chunk-size"))
    source, target = ImageName.parse(args.text("source")), ImageName.parse(args.text("target"))
    with ExitStack() as stack:
        work = stack.enter_context(WorkDir(Path(args.text("work-dir")))).path
        registries = stack.enter_context(Registries())
        board = stack.enter_context(Board())
        store = registries.open(source, common.trust_of(args, "source", source, target))
        images = registries.open(target, common.trust_of(args, "target", target, target, source))
        document = trace.image_of(store, source.reference.manifest, host().architecture)
        file = args.text("prefetch-files")
        if file:
            listed = Path(file).read_bytes()[:LIST_LIMIT]
        else:
            found = trace.pull(store, document)
            if found is None:
                raise UsageError(
                    f"--prefetch-files is missing, and {source} has no trace",
                    hint="nydusify trace push makes one",
                )
            listed = found
        builder = Builder(args.text("nydus-image"), b"", stop)
        backend = common.backend_of(args, "source") or common.registry_backend(store)
        mover = Mover(store, images, work, stop, board, Attempts())
        began = time.monotonic()
        made = optimize(
            store, images, document, str(source), listed, builder, backend, mover, work
        )
        took = time.monotonic() - began
        log.info("builded new prefetch blob and bootstrap, elapsed: %.3fs", took)
        log.info("pushing new image")
        began = time.monotonic()
        images.put_manifest(target.reference.tag or made.digest, made)
        log.info("pushed new image, elapsed: %.3fs", time.monotonic() - began)
