"""``nydusify convert``: an OCI image becomes a Nydus image."""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import NO_ENV, Arguments, Option
from nydus_fscache.cli.nydusify.progress import Board
from nydus_fscache.convert.chunk_dict import parse as parse_dictionary
from nydus_fscache.convert.layer import PackOptions
from nydus_fscache.convert.move import Attempts
from nydus_fscache.convert.run import Conversion, Place, Request
from nydus_fscache.convert.workdir import writable
from nydus_fscache.errors import UsageError
from nydus_fscache.files import is_replaceable, write_output
from nydus_fscache.registry.access import Registries, Trust
from nydus_fscache.registry.image_name import ImageName

log = logging.getLogger("nydusify")

HELP = "Generate a Nydus image from an OCI image"
EXAMPLES = """\
   nydusify convert --source docker.io/library/redis:7 --target registry.example/redis:7-nydus
   nydusify convert --source localhost:5000/app:1 --target-suffix -nydus --oci-ref
   nydusify convert --source app:1 --source-archive app.tar --target app:1 --target-archive out.tar
"""
_NO = (NO_ENV,)
_COMPRESSORS = ("none", "lz4_block", "zstd")
OPTIONS = (
    Option("source", "the image to convert", required=True, value="REF"),
    Option("source-archive", "read it from a docker or OCI tar, or an OCI layout", value="PATH"),
    Option("target", "the name of the result", value="REF"),
    Option("target-suffix", "or: the source's name with this behind its tag", value="TEXT"),
    Option("target-archive", "write an OCI tar, or, with / at the end, a layout", value="PATH"),
    common.insecure("source"), common.insecure("target"), common.PLAIN_HTTP, common.LOGIN,
    *common.backend(),
    Option("backend-force-push", "store blobs again that are there", False),
    Option("source-backend-type", "modelfile or model-artifact", value="TYPE"),
    Option("source-backend-config", "its options, as JSON", value="JSON"),
    Option("build-cache", "an image that remembers converted layers", value="REF"),
    Option("build-cache-tag", "or: this tag beside the target", value="TAG"),
    Option("build-cache-version", "accepted: all options are part of the key", "v1"),
    Option("build-cache-insecure", "do not verify the cache's registry", False),
    Option("build-cache-max-records", "layers that the cache remembers", "200", value="N"),
    Option("chunk-dict", "bootstrap:registry:REF or bootstrap:local:PATH", value="EXPR"),
    Option("chunk-dict-insecure", "do not verify the dictionary's registry", False),
    Option("merge-platform", "an index of the OCI and the Nydus images", False,
           ("multi-platform",), ("MERGE_PLATFORM",)),
    *common.PLATFORMS,
    Option("oci-ref", "refer to the gzip layers instead of storing data again (zran)", False),
    Option("with-referrer", "name the source as the subject of the result", False),
    Option("toc-digest", "layers that Podman 5.1 and later ask their layer store for", False),
    Option("oci", "OCI media types even for a docker source", False),
    Option("docker-v2-format", "docker media types", False, env=_NO, hidden=True),
    Option("reverse", "from Nydus to OCI", False),
    Option("fs-version", "5 or 6", "6"),
    Option("fs-align-chunk", "align chunks", False),
    Option("backend-aligned-chunk", "the same", False, hidden=True),
    Option("prefetch-dir", "a directory to prefetch", value="PATH"),
    Option("prefetch-patterns", "read the paths to prefetch from standard input", False),
    Option("compressor", ", ".join(_COMPRESSORS), "zstd"),
    Option("fs-chunk-size", "bytes of a chunk", "0x100000", ("chunk-size",), value="BYTES"),
    Option("batch-size", "bytes of small chunks that are compressed together", "0", value="BYTES"),
    common.work_dir("./tmp"), common.NYDUS_IMAGE,
    Option("output-json", "write sizes and times to this file", value="FILE"),
    Option("push-retry-count", "attempts of a push", "3", value="N"),
    Option("push-retry-delay", "time between them", "5s", value="TIME"),
)  # fmt: skip


def run(args: Arguments, stop: threading.Event) -> None:
    request = request_of(args)
    output = args.text("output-json")
    if output:
        writable(Path(output))
        if is_replaceable(Path(output)):
            Path(output).unlink(missing_ok=True)  # an older run's is no answer to this one
    with ExitStack() as stack:
        registries = stack.enter_context(Registries())
        board = stack.enter_context(Board())
        if args.flag("reverse"):
            from nydus_fscache.convert.reverse import Reversal  # noqa: PLC0415 - seldom

            Reversal(request, registries, stop=stop, progress=board).run()
            return
        report = Conversion(request, registries, stop=stop, progress=board).run()
    if output:
        text = json.dumps(report.document(), separators=(",", ":"))
        write_output(Path(output), text.encode())


def request_of(args: Arguments) -> Request:
    source = ImageName.parse(args.text("source"))
    target = _target(args, source)
    pack = _pack_options(args)
    oci = args.flag("oci")
    if args.flag("docker-v2-format"):
        log.warning("the option --docker-v2-format is deprecated: leave --oci away instead")
        oci = False
    if pack.oci_ref and not oci:
        log.warning("--oci-ref makes an OCI image: --oci is implied")
        oci = True
    count, delay = args.number("push-retry-count"), args.text("push-retry-delay")
    delay_s = common.duration_s(delay, "push retry delay")
    cache = _cache(args, target)
    records = args.number("build-cache-max-records")
    if cache is not None and records < 1:
        raise UsageError("--build-cache-max-records should be greater than 0")
    if cache is not None and records > 200:
        raise UsageError("--build-cache-max-records should not be greater than 200")
    archive, exported = args.text("source-archive"), args.text("target-archive")
    _check_archives(archive, exported)
    if args.text("source-backend-type"):
        raise UsageError(
            "model artifacts are not supported", hint="convert an image of a container"
        )

    def trust(side: str, name: ImageName) -> Trust:
        return common.trust_of(args, side, name, target, source)

    return Request(
        source=Place(source, trust("source", source), Path(archive) if archive else None),
        target=Place(
            target, trust("target", target), Path(exported) if exported else None,
            exported.endswith("/"),
        ),
        work_dir=Path(args.text("work-dir")),
        pack=pack,
        platforms=common.platforms_of(args),
        all_platforms=args.flag("all-platforms"),
        merge_platform=args.flag("merge-platform"),
        oci=oci,
        referrer=args.flag("with-referrer"),
        toc_digest=args.flag("toc-digest"),
        nydus_image=args.text("nydus-image"),
        chunk_dict=args.text("chunk-dict"),
        chunk_dict_trust=_dictionary_trust(args, target, source),
        cache=cache,
        cache_trust=trust("build-cache", cache) if cache is not None else Trust(),
        cache_records=records,
        backend=common.backend_of(args),
        backend_force=args.flag("backend-force-push"),
        attempts=Attempts(count if count > 0 else 3, delay_s if delay_s > 0 else 5.0),
    )


def _dictionary_trust(args: Arguments, target: ImageName, source: ImageName) -> Trust:
    expression = args.text("chunk-dict")
    if not expression:
        return Trust()
    place, where = parse_dictionary(expression)
    if place == "local":
        return Trust()
    return common.trust_of(args, "chunk-dict", ImageName.parse(where), target, source)


def _target(args: Arguments, source: ImageName) -> ImageName:
    target, suffix = args.text("target"), args.text("target-suffix")
    if target and suffix:
        raise UsageError("--target conflicts with --target-suffix")
    if target:
        return ImageName.parse(target)
    if suffix:
        return source.with_suffix(suffix)
    raise UsageError("--target or --target-suffix is required")


def _cache(args: Arguments, target: ImageName) -> ImageName | None:
    name, tag = args.text("build-cache"), args.text("build-cache-tag")
    if name and tag:
        raise UsageError("--build-cache conflicts with --build-cache-tag")
    if name:
        return ImageName.parse(name)
    return target.with_tag(tag) if tag else None


def _pack_options(args: Arguments) -> PackOptions:
    version = common.one_of(args, "fs-version", ("5", "6"))
    oci_ref = args.flag("oci-ref")
    if oci_ref and version != "6":
        log.warning("--oci-ref needs version 6 of the file system, which is taken")
        version = "6"
    batch = args.text("batch-size")
    options = PackOptions(
        fs_version=version,
        compressor=common.one_of(args, "compressor", _COMPRESSORS),
        chunk_size=args.text("fs-chunk-size"),
        batch_size=batch,
        align=args.flag("fs-align-chunk") or args.flag("backend-aligned-chunk"),
        oci_ref=oci_ref,
        prefetch=_prefetch(args),
    )
    if options.batched and version != "6":
        raise UsageError("'--batch-size' can only be supported by fs version 6")
    return options


def _prefetch(args: Arguments) -> bytes:
    directory, patterns = args.text("prefetch-dir"), args.flag("prefetch-patterns")
    if directory and patterns:
        raise UsageError("--prefetch-dir conflicts with --prefetch-patterns")
    if patterns:
        return sys.stdin.buffer.read(16 << 20) or b"/"
    return directory.encode("utf-8", "surrogateescape") or b"/"


def _check_archives(source: str, target: str) -> None:
    if source:
        try:
            Path(source).stat()
        except OSError as e:
            raise UsageError(
                f"source archive not accessible: {source}: stat {source}: {e.strerror}"
            ) from e
    if target and not Path(target).absolute().parent.is_dir():
        raise UsageError(
            f"target archive directory not accessible: {Path(target).parent}",
            hint="make the directory first",
        )


