"""``nydusify trace push|pull``: an access trace, kept beside its image in the registry."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import Arguments, Option
from nydus_fscache.convert import trace
from nydus_fscache.convert.platforms import host
from nydus_fscache.errors import BadImage, UsageError
from nydus_fscache.files import DEFAULT_ROOT, ROOT_VARIABLE, write_output
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import nydus_image
from nydus_fscache.registry.store import read_blob

log = logging.getLogger("nydusify")

HELP = "Keep the order of an image's first reads beside it: trace push, trace pull"
EXAMPLES = """\
   nydusify trace push --target registry.example/app:1-nydus
   nydusify trace pull --target registry.example/app:1-nydus --output app.trace
"""
WORDS = ("push", "pull")
OPTIONS = (
    Option("target", "the Nydus image", required=True, value="REF"),
    common.insecure("target"), common.PLAIN_HTTP, common.LOGIN,
    Option("trace", "push: the file; default: the one that our daemon recorded", value="FILE"),
    Option("root", "push: the daemon's directory", DEFAULT_ROOT, env=(ROOT_VARIABLE,),
           value="DIR"),
    Option("output", "pull: where it goes", value="FILE"),
)  # fmt: skip


def run(args: Arguments, stop: threading.Event) -> None:
    (word,) = args.rest
    name = ImageName.parse(args.text("target"))
    with Registries() as registries:
        repository = registries.open(name, common.trust_of(args, "target", name, name))
        image = trace.image_of(repository, name.reference.manifest, host().architecture)
        if word == "pull":
            if not args.text("output"):
                raise UsageError("--output is required", hint="the file for the trace")
            data = trace.pull(repository, image)
            if data is None:
                raise BadImage(f"{name} has no trace", hint="nydusify trace push makes it")
            write_output(Path(args.text("output")), data)
            log.info("pulled trace of %s", name)
            return
        layer = nydus_image(image.json, str(name)).bootstrap
        boot = extract_bootstrap(read_blob(repository, layer, LAYER_LIMIT))
        digest = hashlib.sha256(boot).hexdigest()
        file = args.text("trace") or str(Path(args.text("root"), "images", f"{digest}.trace"))
        try:
            with open(file, "rb") as source:
                data = source.read(trace.LIMIT + 1)
        except FileNotFoundError:
            raise UsageError(
                f"{file}: no such trace", hint="mount the image, start its program, unmount it"
            ) from None
        made = trace.push(repository, image, data[: trace.LIMIT], f"sha256:{digest}")
        log.info("pushed trace %s of %s", made, name)
