"""``nydusify chunkdict generate``: a dictionary of the chunks that images share."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import ExitStack
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import Arguments, Option
from nydus_fscache.cli.nydusify.progress import Board
from nydus_fscache.convert.builder import Builder
from nydus_fscache.convert.chunk_dict import output_blobs
from nydus_fscache.convert.dictionary import Related, dictionary_image
from nydus_fscache.convert.move import Attempts, Mover
from nydus_fscache.convert.platforms import Platform, host
from nydus_fscache.convert.trace import image_of
from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import nydus_image
from nydus_fscache.registry.store import read_blob

log = logging.getLogger("nydusify")

HELP = "Make a dictionary of the chunks that images have in common: chunkdict generate"
EXAMPLES = """\
   nydusify chunkdict generate --sources reg.example/app:1-nydus,reg.example/app:2-nydus \\
       --target reg.example/app:dict
"""
WORDS = ("generate",)
OPTIONS = (
    Option("sources", "Nydus images, commas between them", required=True, many=True, value="REFS"),
    Option("target", "the dictionary's image", value="REF"),
    common.insecure("source"), common.insecure("target"), common.PLAIN_HTTP, common.LOGIN,
    *common.backend(), *common.PLATFORMS, common.work_dir("./output"), common.NYDUS_IMAGE,
)  # fmt: skip


def run(args: Arguments, stop: threading.Event) -> None:
    sources = [ImageName.parse(text) for text in args.texts("sources")]
    target = ImageName.parse(args.text("target")) if args.text("target") else None
    backend = common.backend_of(args)
    platform = _platform(args)
    with ExitStack() as stack:
        work = stack.enter_context(WorkDir(Path(args.text("work-dir")))).path
        registries = stack.enter_context(Registries())
        board = stack.enter_context(Board())
        related = []
        for name in sources:
            store = registries.open(name, common.trust_of(args, "source", name, target, sources[0]))
            document = image_of(store, name.reference.manifest, platform.architecture)
            layer = nydus_image(document.json, str(name)).bootstrap
            directory = work / re.sub(r"[/:]", ":", str(name))
            directory.mkdir()
            boot = directory / "nydus_bootstrap"
            boot.write_bytes(extract_bootstrap(read_blob(store, layer, LAYER_LIMIT)))
            related.append(Related(store, document, boot))
        made, output = work / "chunkdict_bootstrap", work / "nydus_bootstrap_output.json"
        builder = Builder(args.text("nydus-image"), b"", stop)
        builder.run(
            [
                "chunkdict", "generate", "--log-level", "warn", "--bootstrap", str(made),
                "--database", f"sqlite://{work.absolute()}/database.db",
                "--output-json", str(output), *(str(one.boot) for one in related),
            ]
        )  # fmt: skip
        if target is None:
            log.info("no --target: the dictionary was made, and is gone")
            return
        images = registries.open(
            target, common.trust_of(args, "target", target, target, sources[0])
        )
        blobs = output_blobs(output)
        final = dictionary_image(
            related, images, made, blobs,
            lambda store: Mover(store, images, work, stop, board, Attempts()),
            common.open_backend(backend, stack),
        )  # fmt: skip
        images.put_manifest(target.reference.tag or final.digest, final)
        log.info("pushed chunk dictionary %s of %d blobs", target, len(blobs))


def _platform(args: Arguments) -> Platform:
    """A dictionary has one."""
    chosen = common.platforms_of(args)
    if args.flag("all-platforms") or len(chosen) > 1:
        log.warning("a dictionary is of one platform: the first that is named, or this machine's")
    return chosen[0] if chosen else host()
