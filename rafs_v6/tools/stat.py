"""How much images share: chunks of files, distinct ones, those that other images have too.

Field names and meanings are the original's, measured by its output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rafs_v6.format.erofs import EROFS_BLOCK, Digester
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.tools.blobs import is_dictionary
from rafs_v6.tools.records import records_by_chunk
from rafs_v6.values import asdict, dataclass, field

_CHUNK_SIZES = 9  # 4 KiB to 1 MiB
_FILE_BITS = 45

Digest = tuple[Digester, bytes]
Sizes = tuple[int, int]  # compressed, uncompressed


@dataclass(slots=True)
class ImageStat:
    """``chunks`` and sizes count every use; ``own_*`` distinct chunks; ``ref_*`` those that a
    base image has; ``dedup_*`` those that more than one of these images has.

    ``chunk_sizes[i]``: how many chunks there would be of 4 KiB << i;
    ``file_sizes[i]``: files whose size has i bits.
    """

    dirs: int = 0
    files: int = 0
    symlinks: int = 0
    chunks: int = 0
    file_size: int = 0
    comp_size: int = 0
    uncomp_size: int = 0
    padding_size: int = 0
    chunk_sizes: list[int] = field(default_factory=lambda: [0] * _CHUNK_SIZES)
    file_sizes: list[int] = field(default_factory=lambda: [0] * _FILE_BITS)
    dedup_chunks: int = 0
    dedup_comp_size: int = 0
    dedup_uncomp_size: int = 0
    own_chunks: int = 0
    own_comp_size: int = 0
    own_uncomp_size: int = 0
    ref_chunks: int = 0
    ref_comp_size: int = 0
    ref_uncomp_size: int = 0


def stat_images(base: Iterable[Bootstrap], target: Bootstrap | None) -> dict[str, object]:
    """The document of ``nydus-image stat``."""
    base_stat, target_stat = ImageStat(), ImageStat()
    known: dict[Digest, Sizes] = {}
    count = 0
    for bootstrap in base:
        count += 1
        found = _add_tree(base_stat, bootstrap)
        for digest in found.keys() & known.keys():
            _add(base_stat, "dedup", found[digest])
        known |= found
    for sizes in known.values():
        _add(base_stat, "own", sizes)
    if target is not None:
        for digest, sizes in _add_tree(target_stat, target).items():
            _add(target_stat, "ref" if digest in known else "own", sizes)
    return {
        "dedup_enabled": count > 1,
        "target_enabled": target is not None,
        "base_image": asdict(base_stat),
        "target_image": asdict(target_stat),
    }


def _add_tree(out: ImageStat, bootstrap: Bootstrap) -> dict[Digest, Sizes]:
    """Count a tree; its distinct chunks.  Of a dictionary, all that its chunk table has."""
    records = records_by_chunk(bootstrap)
    found: dict[Digest, Sizes] = {}
    if is_dictionary(bootstrap):
        for (blob, _), chunk in records.items():
            sizes = chunk.compressed_size, chunk.uncompressed_size
            found[bootstrap.blobs[blob].digester, chunk.digest] = sizes
            out.chunks += 1
            out.comp_size += sizes[0]
            out.uncomp_size += sizes[1]
        return found
    seen: set[int] = set()
    for _, inode in bootstrap.walk():
        out.dirs += inode.is_dir
        out.symlinks += inode.is_symlink
        if not inode.is_reg:
            continue
        out.files += 1
        if inode.nid in seen:
            continue  # another name of it: the original counts the name, but not the data
        seen.add(inode.nid)
        out.file_size += inode.size
        out.file_sizes[min(inode.size.bit_length(), _FILE_BITS - 1)] += 1
        padding = -inode.size % EROFS_BLOCK
        out.padding_size += padding
        out.uncomp_size += inode.size + padding
        for i in range(_CHUNK_SIZES):
            out.chunk_sizes[i] += -(-inode.size // (EROFS_BLOCK << i))
        for ref in bootstrap.chunks(inode):
            out.chunks += 1
            record = records.get((ref.blob_index, ref.chunk_index))
            if record is None:
                out.comp_size += ref.size
                continue
            digester = bootstrap.blobs[ref.blob_index].digester
            sizes = record.compressed_size, record.uncompressed_size
            found[digester, record.digest] = sizes
            out.comp_size += sizes[0]
    return found


def _add(out: ImageStat, kind: str, sizes: Sizes) -> None:
    for name, amount in zip(("chunks", "comp_size", "uncomp_size"), (1, *sizes), strict=True):
        setattr(out, f"{kind}_{name}", getattr(out, f"{kind}_{name}") + amount)


def lines(document: dict[str, object]) -> Iterator[str]:
    """The same for people."""
    titles = {"base_image": "Base images", "target_image": "Target image"}
    for name, title in titles.items():
        values = document[name]
        assert isinstance(values, dict)
        if name == "target_image" and not document["target_enabled"]:
            continue
        yield f"{title}:"
        for key, value in values.items():
            if not isinstance(value, list):
                yield f"  {key.replace('_', ' '):18} {value}"
        for i, count in enumerate(values["chunk_sizes"]):
            yield f"  chunks of {4 << i:4} KiB {count}"
