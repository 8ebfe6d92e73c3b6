"""``trace``: what an image's last start read, in which order; as text, JSON, paths or a picture."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nydus_fscache.cli.fscache.common import add_root, require_root
from nydus_fscache.cli.output import printable, table
from nydus_fscache.errors import BadImage, DaemonError, MountpointError, UsageError

if TYPE_CHECKING:
    import rafs_v6
    from nydus_fscache.cli.plot import Plot

NAME = "trace"
HELP = "show in which order an image was read"
EXAMPLES = """\
examples:
  nydus-fscache trace /mnt/app
  nydus-fscache trace image.boot --paths | \\
      nydus-image create --prefetch-policy fs -B new.boot -D blobs/ tree/
  nydus-fscache trace /mnt/app --plot start.svg
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Show the files that were read first after an image was mounted, in their "
        "order. The daemon records that for every image, and loads ahead in the same "
        "order when the image is mounted again.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="MOUNTPOINT|IMAGE", help="a mountpoint, or a bootstrap")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="every access, as one document")
    how.add_argument(
        "--paths", action="store_true", help="absolute paths, one a line, as prefetch lists are"
    )
    how.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw place over time: FILE.svg or FILE.png"
    )
    how.add_argument("--forget", action="store_true", help="drop the trace of an unmounted image")
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    require_root("trace")
    if args.plot:
        from nydus_fscache.cli import plot  # noqa: PLC0415 - quick --help

        plot.check_suffix(args.plot)
    digest = _digest(args)
    kept = args.root / "images" / f"{digest}.trace"
    if args.forget:
        _check_unmounted(args, digest)
        kept.unlink(missing_ok=True)
        return 0
    accesses = _accesses(args.root, digest, kept)
    if not accesses:
        raise UsageError(f"{args.image} has no trace", hint="mount it and let a program read it")
    boot = args.root / "images" / f"{digest}.boot"
    files = _Files(boot if boot.exists() else Path(args.image))
    for access in accesses:
        access["paths"] = files.of(access["blob"], access["chunk"], access["count"])
    if args.json:
        document = {"bootstrap_digest": f"sha256:{digest}", "accesses": accesses}
        print(json.dumps(document, indent=1))
    elif args.plot:
        plot.write(_plot(accesses, files.chunks), args.plot)
    else:
        first: dict[str, int] = {}
        for access in accesses:
            for path in access["paths"]:
                first.setdefault(path, access["t_ms"])
        if args.paths:
            # a list has one path a line, so such names cannot be in it
            print("\n".join(path for path in first if "\n" not in path))
        else:
            rows = [[f"{t / 1000:.3f}", printable(os.fsencode(p))] for p, t in first.items()]
            print(table(["SECONDS", "PATH"], rows))
    return 0


def _digest(args: argparse.Namespace) -> str:
    """sha256 of the bootstrap that is meant."""
    from nydus_fscache.api.client import Client  # noqa: PLC0415
    from nydus_fscache.cli.fscache.prefetch import find_mount  # noqa: PLC0415 - quick --help

    if Path(args.image).is_file():
        with open(args.image, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    mount = find_mount(Client(args.root).call("GET", "/v1/status"), args.image)
    return str(mount["bootstrap_digest"]).removeprefix("sha256:")


def _check_unmounted(args: argparse.Namespace, digest: str) -> None:
    """The daemon records what is mounted, and would write the trace again."""
    from nydus_fscache.api.client import Client  # noqa: PLC0415

    with contextlib.suppress(DaemonError):
        for mount in Client(args.root).call("GET", "/v1/status")["mounts"]:
            if mount["bootstrap_digest"] == f"sha256:{digest}":
                raise MountpointError(
                    f"{args.image} is mounted at {mount['mountpoint']}, and recorded",
                    hint="unmount it first",
                )


def _accesses(root: Path, digest: str, kept: Path) -> list[dict[str, Any]]:
    from nydus_fscache.api.client import Client  # noqa: PLC0415

    try:
        document = Client(root).call("GET", "/v1/traces", digest=digest)
    except DaemonError:  # none runs: what it left
        from nydus_fscache.fetch.trace import as_document, load  # noqa: PLC0415

        document = as_document(digest, load(kept))
    accesses: list[dict[str, Any]] = document["accesses"]
    return accesses


class _Files:
    """Which files lie in which chunks, from the bootstrap alone."""

    def __init__(self, path: Path) -> None:
        import rafs_v6  # noqa: PLC0415

        try:
            bootstrap = rafs_v6.Bootstrap.from_file(path)
            self._paths, self.chunks = self._read(bootstrap)
        except rafs_v6.ImageError as e:
            raise BadImage(f"{path}: {e}") from e

    @staticmethod
    def _read(bootstrap: rafs_v6.Bootstrap) -> tuple[dict[tuple[str, int], list[str]], int]:
        paths: dict[tuple[str, int], list[str]] = {}
        for path, inode in bootstrap.walk():
            if not inode.is_reg:
                continue
            name = os.fsdecode(path)
            for ref in bootstrap.chunks(inode):
                key = bootstrap.blobs[ref.blob_index].blob_id, ref.chunk_index
                known = paths.setdefault(key, [])
                if name not in known:
                    known.append(name)
        return paths, sum(info.chunk_count for info in bootstrap.blobs)

    def of(self, blob: str, first: int, count: int) -> list[str]:
        chunks = range(first, first + min(count, self.chunks))
        return list(dict.fromkeys(p for c in chunks for p in self._paths.get((blob, c), [])))


def _plot(accesses: list[dict[str, Any]], chunks: int) -> Plot:
    """Chunks over time: one mark an access, with its file as tooltip where there are any."""
    from nydus_fscache.cli.plot import Plot, Point  # noqa: PLC0415 - quick --help

    return Plot(
        title=f"{len(accesses)} first accesses",
        x_label="seconds since the mount",
        y_label=f"place in the image (chunk of {chunks})",
        points=[
            Point(
                a["t_ms"] / 1000, a["chunk"], ", ".join(a["paths"][:3]) or f"chunk {a['chunk']}"
            )
            for a in accesses
        ],
        right=max(1, *(a["t_ms"] for a in accesses)) / 1000,
        top=max([chunks, 1, *(a["chunk"] + 1 for a in accesses)]),
    )
