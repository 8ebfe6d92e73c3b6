"""``stat``: an image, or one entry of it, in full."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nydus_fscache.cli.fscache.common import add_bootstrap
from nydus_fscache.cli.output import printable, size, table

if TYPE_CHECKING:
    import rafs_v6

NAME = "stat"
HELP = "describe an image or an entry of it, without mounting it"
EXAMPLES = """\
examples:
  nydus-fscache stat image.boot
  nydus-fscache stat image.boot /usr/bin/python3
  nydus-fscache stat --json image.boot | jq -r '.blobs[].id'
"""

_XATTR_SHOWN = 64  # bytes of a value in text; JSON has all of it


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Describe an image (features, blobs, compressors, digests), or, with PATH, one "
        "entry of it. Needs neither blobs nor root; symbolic links are not followed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bootstrap(parser)
    parser.add_argument("path", metavar="PATH", nargs="?")
    parser.add_argument("--json", action="store_true", help="print a JSON document")


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.cli.fscache.image_files import describe, open_bootstrap, resolve  # noqa: PLC0415

    bootstrap, _ = open_bootstrap(args.bootstrap)
    if args.path is None:
        document = _image_document(bootstrap)
        lines = _image_lines(document)
    else:
        path, inode = resolve(bootstrap, args.path, follow=False)
        document = {**describe(bootstrap, path, inode), **_layout(bootstrap, inode)}
        lines = _entry_lines(document)
    print(json.dumps(document, indent=2) if args.json else "\n".join(lines))
    return 0


def _image_document(bootstrap: rafs_v6.Bootstrap) -> dict[str, Any]:
    from nydus_fscache.cli.fscache.image_files import entry_type  # noqa: PLC0415 - quick --help

    entries: dict[str, int] = {}
    seen: set[int] = set()
    content = 0
    for _, inode in bootstrap.walk():
        kind = entry_type(inode)
        entries[kind] = entries.get(kind, 0) + 1
        if inode.is_reg and inode.nid not in seen:
            content += inode.size
        seen.add(inode.nid)
    tables = bootstrap.tables
    return {
        "format": "RAFS v6",
        "bootstrap_size": len(bootstrap.data),
        "bootstrap_sha256": hashlib.sha256(bootstrap.data).hexdigest(),
        "block_size": bootstrap.block_size,
        "chunk_size": bootstrap.chunk_size,
        "flags": _names(tables.flags),
        "inodes": len(seen),
        "entries": entries,
        "content_size": content,
        "chunk_digests": bool(len(bootstrap.chunk_table)),
        "prefetch_inodes": len(bootstrap.prefetch_nids),
        "blobs": [_blob(info) for info in bootstrap.blobs],
    }


def _names(flags: Any) -> list[str]:
    return [str(flag.name).lower() for flag in flags]


def _blob(info: rafs_v6.BlobInfo) -> dict[str, Any]:
    return {
        "index": info.index,
        "id": info.blob_id,
        "meta_id": info.meta_blob_id,
        "chunks": info.chunk_count,
        "compressed_size": info.compressed_size,
        "data_size": info.data_size,
        "uncompressed_size": info.uncompressed_size,
        "compressor": info.compressor.name.lower(),
        "digester": info.digester.name.lower(),
        "encrypted": info.is_encrypted,
        "features": _names(info.features),
    }


def _image_lines(document: dict[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(document["entries"].items()))
    yield f"format:      {document['format']}"
    yield f"bootstrap:   {size(document['bootstrap_size'])}, sha256:{document['bootstrap_sha256']}"
    yield f"blocks:      {size(document['block_size'])}, chunks of {size(document['chunk_size'])}"
    yield f"flags:       {', '.join(document['flags'])}"
    yield f"entries:     {counts} ({document['inodes']} inodes)"
    yield f"content:     {size(document['content_size'])}"
    yield f"digests:     {'' if document['chunk_digests'] else 'not '}in the bootstrap"
    yield f"prefetch:    {document['prefetch_inodes']} inodes"
    if not document["blobs"]:
        return
    header = ["BLOB", "STORED", "PLAIN", "CHUNKS", "COMPRESSOR", "DIGESTER", "FEATURES"]
    rows = [
        [
            printable(blob["id"].encode()),
            size(blob["compressed_size"]),
            size(blob["uncompressed_size"]),
            str(blob["chunks"]),
            blob["compressor"],
            blob["digester"],
            ",".join(blob["features"]),
        ]
        for blob in document["blobs"]
    ]
    yield ""
    yield table(header, rows)


def _layout(bootstrap: rafs_v6.Bootstrap, inode: rafs_v6.Inode) -> dict[str, Any]:
    """Where the content lies; ``extents``: runs of chunks, offsets into the flat blob."""
    layout: dict[str, Any] = {"nid": inode.nid}
    if not inode.is_reg:
        return layout
    chunks = 0
    extents: list[dict[str, Any]] = []
    for ref in bootstrap.chunks(inode):
        chunks += 1
        last = extents[-1] if extents else None
        blob = bootstrap.blobs[ref.blob_index].blob_id
        if last and last["blob"] == blob and last["offset"] + last["size"] == ref.flat_off:
            last["size"] += ref.size
        else:
            extents.append({"blob": blob, "offset": ref.flat_off, "size": ref.size})
    return {**layout, "chunks": chunks, "extents": extents}


def _entry_lines(document: dict[str, Any]) -> Iterator[str]:
    for key, value in document.items():
        if key == "extents":
            for extent in value:
                blob = printable(extent["blob"].encode())
                yield f"extent:      {extent['size']} bytes at {extent['offset']:#x} of {blob}"
        elif key == "xattrs":
            for name, data in value.items():
                raw = bytes.fromhex(data)
                rest = f"… ({len(raw)} bytes)" if len(raw) > _XATTR_SHOWN else ""
                shown = printable(raw[:_XATTR_SHOWN]) + rest
                yield f"xattr:       {printable(_raw(name))} = {shown}"
        elif key == "mtime":
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value))
            yield f"mtime:       {when} UTC"
        else:
            yield f"{key + ':':12} {printable(_raw(str(value)))}"


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
