"""``nydusify check``: is an image right, and does it hold what its source holds?"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import NO_ENV, Arguments, Option
from nydus_fscache.convert.builder import Builder
from nydus_fscache.convert.check import Checker, Side, parse, platform_for
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName

HELP = "Verify Nydus image format and content"
EXAMPLES = """\
   nydusify check --target registry.example/app:1-nydus
   nydusify check --source registry.example/app:1 --target registry.example/app:1-nydus
"""
OPTIONS = (
    Option("source", "the image to compare with", value="REF"),
    Option("target", "the image to check", required=True, value="REF"),
    common.insecure("source"), common.insecure("target"), common.PLAIN_HTTP, common.LOGIN,
    *common.backend("source"), *common.backend("target"),
    Option("multi-platform", "accepted: both halves of a merged image are checked", False),
    Option("platform", "linux/amd64 or linux/arm64", env=(NO_ENV,)),
    common.work_dir("./output"), common.NYDUS_IMAGE,
    Option("nydusd", "accepted: nothing is mounted", "nydusd", value="PROGRAM"),
)  # fmt: skip


def run(args: Arguments, stop: threading.Event) -> None:
    platform = platform_for(args.text("platform"))
    target = ImageName.parse(args.text("target"))
    source = ImageName.parse(args.text("source")) if args.text("source") else None
    builder = Builder(args.text("nydus-image"), b"", stop)
    with ExitStack() as stack:
        registries = stack.enter_context(Registries())

        def side(label: str, name: ImageName) -> Side:
            store = registries.open(name, common.trust_of(args, label, name, target, source))
            backend = common.open_backend(common.backend_of(args, label), stack)
            found = Side(str(name), label, store, store if backend is None else backend)
            return parse(found, name.reference.manifest, platform)

        after = side("target", target)
        before = side("source", source) if source else None
        directory = Path(args.text("work-dir"))
        Checker(before, after, directory, stop.is_set, builder.run).run()
