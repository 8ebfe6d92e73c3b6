"""``nydusify build`` (``pack``): a directory becomes a bootstrap and a blob."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import Arguments, Option
from nydus_fscache.convert.builder import Builder, secret_file
from nydus_fscache.convert.chunk_dict import output_blobs
from nydus_fscache.convert.push_build import KINDS, push_build
from nydus_fscache.errors import UsageError

log = logging.getLogger("nydusify")

HELP = "Build a Nydus image from a directory"
EXAMPLES = """\
   nydusify build --source-dir tree/ --name app.meta --output-dir out/
   nydusify pack --source-dir tree/ --name app --parent-bootstrap out/old.meta --output-dir out/
"""
_COMPRESSORS = ("none", "lz4_block", "zstd")
OPTIONS = (
    Option("source-dir", "the directory", aliases=("target-dir",), required=True, value="DIR"),
    Option("name", "of the bootstrap", aliases=("meta", "bootstrap"),
           env=("BOOTSTRAP", "IMAGE_NAME"), required=True),
    Option("output-dir", "for both", "./.nydus-build-output", ("o",), value="DIR"),
    Option("backend-push", "store the blobs and the bootstrap in a backend", False),
    *common.backend(default="oss"),
    Option("chunk-dict", "bootstrap=FILE", value="EXPR"),
    Option("parent-bootstrap", "the image below", value="FILE"),
    Option("compact", "compact the parent first", False),
    Option("compact-config-file", "its limits, as JSON", value="FILE"),
    Option("fs-version", "6", "6"),
    Option("compressor", ", ".join(_COMPRESSORS), "zstd"),
    Option("chunk-size", "bytes of a chunk", "0x100000", value="BYTES"),
    common.NYDUS_IMAGE,
)  # fmt: skip
_LIMITS = {
    "min_used_ratio": ("--min-used-ratio", 5),
    "compact_blob_size": ("--compact-blob-size", 10485760),
    "max_compact_size": ("--max-compact-size", 104857600),
    "layers_to_compact": ("--layers-to-compact", 32),
}


def run(args: Arguments, stop: threading.Event) -> None:
    source, output = Path(args.text("source-dir")), Path(args.text("output-dir"))
    if not source.is_dir():
        raise UsageError(f"{source} is not a directory", hint="--source-dir takes one")
    backend = common.backend_of(args) if args.flag("backend-push") else None
    if backend is not None and backend[0] not in KINDS:
        raise UsageError(f"--backend-type should be one of [{' '.join(KINDS)}] to push")
    common.one_of(args, "fs-version", ("5", "6"))
    common.one_of(args, "compressor", _COMPRESSORS)
    output.mkdir(parents=True, exist_ok=True)
    builder = Builder(args.text("nydus-image"), b"", stop)
    name = Path(args.text("name"))
    boot = output / (name.name if name.suffix else f"{name.name}.meta")
    blob = output / f"{name.stem if name.suffix else name.name}.blob"
    parent = args.text("parent-bootstrap")
    if parent and args.flag("compact"):
        parent = str(_compact(args, builder, parent, output))
    words = ["create"]
    if parent:
        words += ["--parent-bootstrap", parent]
    if args.text("chunk-dict"):
        words += ["--chunk-dict", args.text("chunk-dict")]
    log.info('start to build image from source directory "%s"', source)
    words += [
        "--bootstrap", str(boot), "--log-level", "warn", "--whiteout-spec", "oci",
        "--output-json", str(output / "output.json"), "--blob", str(blob),
        "--fs-version", args.text("fs-version"), "--compressor", args.text("compressor"),
        "--chunk-size", args.text("chunk-size"), str(source),
    ]  # fmt: skip
    builder.run(words)
    if (parent or backend) and blob.is_file():
        blob = _renamed(blob, output)
    log.info(
        "successfully built Nydus image (bootstrap:'%s', blob:'%s')",
        boot, blob if blob.is_file() else "",
    )  # fmt: skip
    if backend is not None:
        place = push_build(*backend, boot, output_blobs(output / "output.json"), output)
        log.info("pushed Nydus image: %s", place)


def _renamed(blob: Path, output: Path) -> Path:
    """A blob's name beside those of its parent is its id."""
    import hashlib  # noqa: PLC0415 - seldom

    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in output_blobs(output / "output.json"):
        return blob
    log.info("rename blob file into sha256 csum")
    return blob.replace(output / digest)


def _compact(args: Arguments, builder: Builder, parent: str, output: Path) -> Path:
    config = {}
    if args.text("compact-config-file"):
        try:
            config = json.loads(common.read_small(Path(args.text("compact-config-file"))))
        except ValueError as e:
            raise UsageError(f"--compact-config-file is not JSON: {e}") from e
    words = ["compact", "--bootstrap", parent, "--blob-dir", str(output)]
    for key, (option, default) in _LIMITS.items():
        words += [option, str(config.get(key, default))]
    target = Path(f"{parent}.compact")
    words += [
        "--log-level", "info", "--output-json", str(output / "compact-result.json"),
        "--output-bootstrap", str(target),
    ]  # fmt: skip
    if args.text("chunk-dict"):
        words += ["--chunk-dict", args.text("chunk-dict")]
    backend = common.backend_of(args) if args.given("backend-type") else None
    if backend is None:
        builder.run(words)
    else:
        with secret_file(output / "backend-config.json", backend[1]) as file:
            builder.run([*words, "--backend-type", backend[0], "--backend-config-file", str(file)])
    return target if target.is_file() else Path(parent)
