"""``store``: an additional layer store for Podman, Buildah and CRI-O."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nydus_fscache.cli.fscache.common import add_root, require_root, resolved_path

NAME = "store"
HELP = "serve Nydus images to Podman, Buildah and CRI-O"
DEFAULT = Path("/var/lib/nydus-store")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Serve an additional layer store in the foreground. Names come from here, "
        "data from the kernel's EROFS mounts: running containers do not need this process.",
        epilog=f"example:\n  nydus-fscache store {DEFAULT} &\n\n"
        "In storage.conf, below [storage.options]:\n\n"
        f'  additionallayerstores = ["{DEFAULT}/names:ref"]\n',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "store", metavar="DIR", type=resolved_path, nargs="?", default=DEFAULT,
        help=f"of names and mounts (default: {DEFAULT})",
    )  # fmt: skip
    parser.add_argument(
        "--authfile", metavar="FILE", type=resolved_path,
        default=os.environ.get("NYDUS_FSCACHE_STORE_AUTHFILE") or None,
        help="credentials, as podman login writes them (default: docker's config.json); for root's "
        "images only",
    )  # fmt: skip
    parser.add_argument(
        "--backend", metavar="FILE", type=resolved_path,
        default=os.environ.get("NYDUS_FSCACHE_STORE_BACKEND") or None,
        help="where blobs are, when not in the image's registry: a configuration of nydusd, or its "
        "backend object; for root's images only",
    )  # fmt: skip
    parser.add_argument(
        "--plain-http", metavar="HOST", action="append",
        help="this registry speaks http (of one on this machine it is found out); may be repeated",
    )  # fmt: skip
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.handover.commands import keeper_argv  # noqa: PLC0415 - start-up time
    from nydus_fscache.kernel.probe import require_cache_dir  # noqa: PLC0415
    from nydus_fscache.runtimes.store.main import service_words  # noqa: PLC0415

    require_root("store")
    require_cache_dir(args.root)
    hosts = args.plain_http
    if hosts is None:
        hosts = [h for h in os.environ.get("NYDUS_FSCACHE_STORE_PLAIN_HTTP", "").split(",") if h]
    words = service_words(args.store, args.root, args.authfile, args.backend, hosts)
    program, service = keeper_argv(words)
    if sys.stdout is not None:
        sys.stdout.flush()
    os.chdir("/")
    os.execv(program[0], [*program, *service])
