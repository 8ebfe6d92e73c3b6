"""``nydus-image create``: an image out of a directory, a tar or a tar.gz."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rafs_v6._writer import lib
from rafs_v6.cli._common import (
    add_builder,
    at_least,
    check_config,
    file_path,
    new_bootstrap,
    progress_line,
    read_prefetch,
    report,
)
from rafs_v6.format.erofs import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, Compressor, Digester
from rafs_v6.values import replace
from rafs_v6.writer.blob_file import ended_on_error
from rafs_v6.writer.cipher import XtsKey
from rafs_v6.writer.create import create_from_directory
from rafs_v6.writer.errors import BuildError, UsageError
from rafs_v6.writer.options import ChunkOptions, CreateOptions, Into
from rafs_v6.writer.overlay import WhiteoutSpec

_COMPRESSORS = {c.name.lower(): c for c in (Compressor.NONE, Compressor.LZ4_BLOCK, Compressor.ZSTD)}
_DIGESTERS = {d.name.lower(): d for d in Digester}
_TAR_TYPES = {
    "tar-rafs": Into.RAFS,
    "targz-rafs": Into.RAFS,
    "estargz-rafs": Into.RAFS,
    "targz-ref": Into.REF,
    "estargz-ref": Into.REF,
    "tar-tarfs": Into.TARFS,
}
_ATTRIBUTES_MAX = 16 << 20
_EXAMPLES = """\
examples:
  nydus-image create --bootstrap image.boot --blob-dir blobs/ tree/
  nydus-image create --type targz-ref --bootstrap image.boot --blob-dir blobs/ layer.tar.gz
  nydus-image create --type tar-tarfs --bootstrap image.boot layer.tar
  nydus-image create --type tar-rafs --chunk-dict other.boot -B image.boot -D blobs/ layer.tar
  nydus-image create --batch-size 0x100000 --bootstrap image.boot --blob-dir blobs/ tree/
  find /etc /usr/bin/app | nydus-image create --prefetch-policy fs -B image.boot -D blobs/ tree/
  curl -s URL | nydus-image create --type targz-ref --blob-inline-meta --blob meta.blob -
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "create", help="build an image from a directory or a tar", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "source", type=file_path, metavar="SOURCE", help="- for standard input (tars)"
    )
    parser.add_argument(
        "-t", "--type", "--source-type", default="dir-rafs",
        choices=("dir-rafs", "directory", *_TAR_TYPES),
        help="-rafs: data are stored in chunks; -ref: they stay in the tar or tar.gz, which the"
        " image refers to; tar-tarfs: the uncompressed tar itself is mounted (default: dir-rafs)",
    )  # fmt: skip
    parser.add_argument("-B", "--bootstrap", type=file_path, metavar="FILE")
    parser.add_argument("-D", "--blob-dir", type=file_path, metavar="DIR")
    parser.add_argument("-b", "--blob", type=file_path, metavar="FILE")
    parser.add_argument(
        "--attributes", type=file_path, metavar="FILE",
        help="lines of PATH KEY=VALUE...; a file of type=external is an error (see the manual)",
    )  # fmt: skip
    parser.add_argument(
        "--external-blob", type=file_path, metavar="FILE",
        help="for external files of --attributes; not written, as there are none",
    )  # fmt: skip
    parser.add_argument(
        "--blob-cache-dir", type=file_path, metavar="DIR",
        help="write the files of a node's cache, ID.blob.data and ID.blob.meta; chunks are stored"
        " uncompressed then, and a blob is written only when --blob or --blob-dir is given",
    )  # fmt: skip
    parser.add_argument("--blob-inline-meta", "--inline-bootstrap", action="store_true")
    parser.add_argument("--blob-id")
    parser.add_argument("--chunk-size", type=_chunk_size, default=0x100000, metavar="BYTES")
    parser.add_argument(
        "--batch-size", type=_batch_size, default=0, metavar="BYTES",
        help="compress small files together, in units of so much at most; 0, the default: never",
    )  # fmt: skip
    parser.add_argument(
        "-E", "--encrypt", action="store_true",
        help="encrypt the data by a new key, which lies in the bootstrap: keep that secret",
    )  # fmt: skip
    parser.add_argument("--compressor", choices=sorted(_COMPRESSORS), default="zstd")
    parser.add_argument(
        "--compression-level", type=at_least(1, 19), default=3, help="for zstd, 1 to 19"
    )
    parser.add_argument(
        "--digester", choices=sorted(_DIGESTERS),
        help="default: blake3; sha256 for the types that refer to a tar",
    )  # fmt: skip
    parser.add_argument("-v", "--fs-version", choices=("6",), default="6")
    parser.add_argument("--features", choices=("blob-toc",))
    parser.add_argument("--repeatable", action="store_true")
    parser.add_argument(
        "--whiteout-spec", choices=tuple(WhiteoutSpec), type=WhiteoutSpec, default=WhiteoutSpec.OCI,
        help="what hides lower entries: applied to the parent, taken out of a directory without"
        " one. A tar without a parent is a layer: its whiteouts stay in it, for merge",
    )  # fmt: skip
    for option in ("--aligned-chunk", "--disable-check"):
        parser.add_argument(option, action="store_true", help="accepted; always so in version 6")
    # The original's, of conversions that it has given up.
    parser.add_argument("--blob-offset", type=int, choices=(0,), help=argparse.SUPPRESS)
    parser.add_argument("--blob-data-size", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    add_builder(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    lib.rafs_build_map_columns()
    into = _TAR_TYPES.get(args.type)
    if args.blob_inline_meta and args.bootstrap is not None:
        raise UsageError("the bootstrap goes into the blob (--blob-inline-meta), or to --bootstrap")
    if str(args.source) == "-" and args.prefetch_policy != "none":
        raise UsageError("standard input is either the source or the list of --prefetch-policy")
    _check_cache(args, into)
    _check_attributes(args)
    check_config(args)
    digester = args.digester or ("blake3" if into in (None, Into.RAFS) else "sha256")
    if args.batch_size > args.chunk_size:
        raise UsageError("--batch-size is at most --chunk-size")
    options = CreateOptions(
        ChunkOptions(
            _COMPRESSORS[args.compressor], _DIGESTERS[digester], args.chunk_size,
            args.compression_level, max(1, args.threads), args.batch_size,
            XtsKey.random() if args.encrypt else None,
        ),
        None if args.blob_inline_meta else new_bootstrap(args), args.blob, args.blob_dir,
        args.blob_inline_meta,
        args.features == "blob-toc", args.blob_id, args.repeatable,
        read_prefetch(args), args.prefetch_policy == "fs",
        args.parent_bootstrap, args.chunk_dict, args.whiteout_spec,
        cache_dir=args.blob_cache_dir, warn=args.log.warn,
    )  # fmt: skip
    source = Path("/dev/stdin") if str(args.source) == "-" else args.source
    with ended_on_error(args.blob), progress_line("built") as progress:
        options = replace(options, progress=progress)
        if into is not None:
            from rafs_v6.writer.create_tar import create_from_tar  # noqa: PLC0415 - not always

            made = create_from_tar(source, options, into, estargz=args.type.startswith("estargz"))
        else:
            made = create_from_directory(source, options)
    report(
        args, bootstrap=made.bootstrap, blobs=made.blobs, compressor=made.compressor.name.lower()
    )


def _check_cache(args: argparse.Namespace, into: Into | None) -> None:
    if args.blob_cache_dir is None:
        return
    refers = into not in (None, Into.RAFS)
    if args.encrypt or args.batch_size or args.blob_inline_meta or refers:
        raise UsageError("--blob-cache-dir is for images that store single chunks as they are")
    if not args.blob_cache_dir.is_dir():
        raise UsageError(f"{args.blob_cache_dir} is not a directory: make it first")
    args.compressor = "none"


def _check_attributes(args: argparse.Namespace) -> None:
    """Files whose data lie in another backend (model images) cannot be had: no reader here
    takes them, and the original's ``check`` refuses them."""
    if args.attributes is None:
        return
    text = args.attributes.read_bytes()[:_ATTRIBUTES_MAX].decode("utf-8", "backslashreplace")
    for line in text.splitlines():
        path, *attributes = line.split()[:100] or ["#"]
        if not path.startswith("#") and "type=external" in attributes:
            raise BuildError(
                f"{args.attributes}: {path} is external, its data in another backend: such images"
                " are not built here; take the line out to store the file in the blob"
            )


def _batch_size(text: str) -> int:
    return 0 if text == "0" else _chunk_size(text)


def _chunk_size(text: str) -> int:
    size = int(text, 0)
    if not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE or size & (size - 1):
        raise argparse.ArgumentTypeError("a power of two from 0x1000 to 0x1000000")
    return size
