"""``mount``: one image, loaded lazily, at one mountpoint; starts the daemon when none runs."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nydus_fscache.cli.fscache.common import add_json, add_root, path, require_root, resolved_path
from nydus_fscache.cli.output import parse_size
from nydus_fscache.errors import FscacheError, MountpointError, UsageError

if TYPE_CHECKING:
    from nydus_fscache.config.nydusd import Config
    from nydus_fscache.convert.trace import Search
    from nydus_fscache.registry.pull import FoundImage

NAME = "mount"
HELP = "mount an image that is loaded lazily"
EXAMPLES = """\
examples:
  nydus-fscache mount image.boot /mnt/app --blob-dir blobs/
  nydus-fscache mount image.boot /mnt/app --backend backend.json
  nydus-fscache mount registry.example/team/app:1.2-nydus /mnt/app
  nydus-fscache mount registry.lan:5000/app@sha256:3f… /mnt/app --plain-http
"""

_TRACE_WAIT_S = 2.0
EROFS_MAGIC_OFF, EROFS_MAGIC = 1024, b"\xe2\xe1\xf5\xe0"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Mount a RAFS v6 image by the kernel's EROFS driver. Data are fetched when "
        "they are read. Returns when the mount is ready.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "image",
        metavar="IMAGE",
        help="a bootstrap (file), or HOST[:PORT]/REPO[:TAG|@DIGEST] of a Nydus image",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=resolved_path)
    add_backend(parser)
    parser.add_argument(
        "--plain-http",
        action="store_true",
        help="the registry speaks http, not https (of one on this machine it is found out)",
    )
    parser.add_argument(
        "--transport",
        choices=(
            "auto", "cachefiles", "fanotify", "fuse", "fuse-file", "fuse-loop", "fuse-tree",
        ),
        default=os.environ.get("NYDUS_FSCACHE_TRANSPORT") or "auto",
        help="the kernel interface (default: auto, see nydus-fscache doctor)",
    )
    parser.add_argument(
        "--prefetch",
        choices=("auto", "none", "table", "trace", "all"),
        default=os.environ.get("NYDUS_FSCACHE_PREFETCH") or "auto",
        help="load ahead: the image's prefetch table, what its last start read, or all of it "
        "(default: the trace when there is one, else the table)",
    )
    parser.add_argument(
        "--complete",
        action="store_true",
        help="load all of it behind its readers, whatever fails meanwhile; then it needs no "
        "daemon any more (status: independent)",
    )
    parser.add_argument(
        "--bandwidth",
        metavar="SIZE",
        type=parse_size,
        help="what is loaded ahead takes at most this in a second, such as 20M",
    )
    parser.add_argument(
        "--cache-limit",
        metavar="SIZE",
        type=parse_size,
        help="from now on delete unused blobs when the cache is larger, such as 20G; 0: never",
    )
    add_json(parser)
    add_root(parser)


def add_backend(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--blob-dir", metavar="DIR", type=path, help="the blobs, as files named by blob id"
    )
    where.add_argument(
        "--backend",
        metavar="FILE",
        type=path,
        help="a configuration of nydusd (JSON or TOML), or its backend object alone",
    )


def fetch_config(args: argparse.Namespace) -> Config | None:
    """The backend that the options name, with what a configuration says of fetching, or None."""
    from nydus_fscache.config import nydusd as config  # noqa: PLC0415 - start-up time of other commands

    if args.blob_dir is not None:
        return config.of_backend(_blob_directory(args))
    if args.backend is None:
        return None
    return config.parse(config.read(args.backend), args.backend)


def _blob_directory(args: argparse.Namespace) -> dict[str, Any]:
    """``--blob-dir`` as a backend."""
    if not args.blob_dir.is_dir():
        raise UsageError(f"{args.blob_dir} is no directory", hint="see --blob-dir in --help")
    return {"type": "localfs", "localfs": {"dir": str(args.blob_dir.resolve())}}


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands
    from nydus_fscache.kernel.namespace import mount_namespace  # noqa: PLC0415

    require_root("mount")
    client = Client(args.root)
    if not client.runs():  # one that runs has its cache there
        from nydus_fscache.kernel.probe import require_cache_dir  # noqa: PLC0415

        require_cache_dir(args.root)
    with ExitStack() as cleanup:
        try:
            _check_mountpoint(args)
            named, config = _named_image(args)
        except FscacheError:
            client.serve_again()
            raise

        def request() -> dict[str, Any]:
            image = named or _pulled(args, config, cleanup)
            asked: dict[str, Any] = {
                **image,
                "mountpoint": str(args.mountpoint),
                "transport": args.transport,
                "prefetch": "all" if args.complete else args.prefetch,
                "cache_limit": args.cache_limit,
                "mount_namespace": mount_namespace(),
            }
            if args.bandwidth is not None:
                asked["tuning"] = {**(image.get("tuning") or {}), "bandwidth": args.bandwidth}
            return asked

        answer = client.call_first("POST", "/v1/mounts", request)
    if args.json:
        print(json.dumps(answer))
    else:
        print(f"mounted at {answer['mountpoint']} over {answer['transport']}")
    return 0


def _check_mountpoint(args: argparse.Namespace) -> None:
    """Before a daemon is started for it."""
    point = args.mountpoint
    if point.is_dir():
        if os.path.isdir(args.image):
            raise UsageError(f"{args.image} is a directory", hint="name a bootstrap")
        return
    if os.path.isdir(args.image) and point.exists():
        raise UsageError(
            f"{args.image} is a directory and {point} is not one",
            hint="the image comes first, then the mountpoint",
        )
    if point.exists():
        raise MountpointError(f"mountpoint {point} is not a directory", hint="name a directory")
    raise MountpointError(f"mountpoint {point} does not exist", hint=f"mkdir -p {point}")


def _named_image(args: argparse.Namespace) -> tuple[dict[str, Any] | None, Config | None]:
    """Bootstrap, backend and source of the request, None of an image that is to be pulled; and
    what the options say of the backend."""
    is_file = os.path.exists(args.image)
    plain = _blob_directory(args) if is_file and args.blob_dir is not None else None
    config = fetch_config(args) if plain is None else None  # which is much to import
    if is_file:
        file = Path(os.path.realpath(args.image))
        if not file.is_file():
            raise UsageError(f"{args.image} is not a regular file", hint="name a bootstrap")
        config = _own_blob(file) or config
        if config is None and plain is not None:
            return {"bootstrap": str(file), "backend": plain, "source": str(file)}, None
        if config is None:
            raise UsageError("where are the blobs?", hint="add --blob-dir DIR or --backend FILE")
        return {"bootstrap": str(file), **config.request(), "source": str(file)}, config
    if args.image.startswith(("/", ".")) or "/" not in args.image:
        raise UsageError(
            f"no file {args.image}", hint="name a bootstrap, or an image as HOST/REPO:TAG"
        )
    if config is None and (backend := os.environ.get("NYDUS_FSCACHE_BACKEND")):
        args.backend = Path(backend)
        config = fetch_config(args)
    from nydus_fscache.registry.reference import Reference  # noqa: PLC0415 - only for registries

    Reference.parse(args.image)  # a wrong one starts no daemon
    return None, config


def _pulled(
    args: argparse.Namespace, config: Config | None, cleanup: ExitStack
) -> dict[str, Any]:  # fmt: skip
    """The same of an image of a registry."""
    import hashlib  # noqa: PLC0415 - only for registries
    import tempfile  # noqa: PLC0415

    from nydus_fscache.registry.pull import find_image  # noqa: PLC0415

    search = None
    of_registry = config is None or config.backend.get("type") == "registry"
    options = config.backend.get("registry") if config and of_registry else None
    with find_image(args.image, plain_http=args.plain_http, options=options) as found:
        if args.prefetch in ("auto", "trace"):
            search = _trace_search(found)
        pulled = found.pull()
        directory = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nydus-fscache-"))
        bootstrap = Path(directory) / "image.boot"
        bootstrap.write_bytes(pulled.bootstrap)
        if search is not None:
            digest = hashlib.sha256(pulled.bootstrap).hexdigest()
            search.keep_as(args.root / "images" / f"{digest}.trace", _TRACE_WAIT_S)
    return {
        "bootstrap": str(bootstrap),
        **(config.request() if config else {}),
        **({"backend": pulled.backend} if of_registry else {}),
        "source": pulled.reference,
    }


def _trace_search(found: FoundImage) -> Search:
    """For the order of first reads that another node left beside the image."""
    from nydus_fscache.convert.trace import Search  # noqa: PLC0415 - only for registries
    from nydus_fscache.registry.repository import Repository  # noqa: PLC0415

    reference = found.reference
    repository = Repository(found.client, found.client.base.authority, reference.repo)
    return Search(repository, found.manifest_digest, found.image)


def _own_blob(file: Path) -> Config | None:
    """For a blob with its bootstrap inside that does not know its own name: the file is all that
    there is to read."""
    with file.open("rb") as f:
        head = f.read(EROFS_MAGIC_OFF + 4)
    if head[EROFS_MAGIC_OFF:] == EROFS_MAGIC or len(head) < EROFS_MAGIC_OFF + 4:
        return None
    from nydus_fscache.cli.fscache.image_files import open_bootstrap  # noqa: PLC0415
    from nydus_fscache.config import nydusd as config  # noqa: PLC0415
    from rafs_v6.format.blob_table import is_inlined_id  # noqa: PLC0415

    bootstrap, inside = open_bootstrap(file)
    if not inside or not any(is_inlined_id(info.blob_id) for info in bootstrap.blobs):
        return None
    return config.of_backend({"type": "localfs", "localfs": {"blob_file": str(file)}})
