"""``graphdriver``: Docker's graph driver plugin, for engines up to 26."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from pathlib import Path

from nydus_fscache.cli.fscache.common import add_root, require_root, resolved_path
from nydus_fscache.cli.fscache.mount import add_backend, fetch_config
from nydus_fscache.errors import UsageError

NAME = "graphdriver"
HELP = "serve Nydus images to Docker up to 26, as its graph driver"
DEFAULT = Path("/run/docker/plugins/nydus.sock")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Serve Docker's graph driver plugin in the foreground. An image's manifest "
        "must list its bootstrap layer alone: Docker unpacks every layer that it lists.",
        epilog="example:\n  nydus-fscache graphdriver --backend backend.json &\n"
        "  dockerd --experimental -s nydus\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--socket", metavar="PATH", type=resolved_path, default=DEFAULT,
        help=f"its name is the driver's (default: {DEFAULT})",
    )  # fmt: skip
    add_backend(parser)
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    from nydus_fscache.api.client import Client  # noqa: PLC0415 - start-up time of other commands
    from nydus_fscache.handover.systemd import Unit  # noqa: PLC0415
    from nydus_fscache.kernel.probe import require_cache_dir  # noqa: PLC0415
    from nydus_fscache.runtimes.docker.driver import Layers  # noqa: PLC0415
    from nydus_fscache.runtimes.docker.plugin import listen  # noqa: PLC0415

    require_root("graphdriver")
    require_cache_dir(args.root)
    backend = os.environ.get("NYDUS_FSCACHE_GRAPHDRIVER_BACKEND")
    if backend and args.backend is None and args.blob_dir is None:
        args.backend = Path(backend)
    config = fetch_config(args)
    if config is None:
        raise UsageError(
            "where are the blobs?",
            hint="docker tells no registry: --backend FILE, --blob-dir DIR, or graphdriver.backend "
            "in the configuration file",
        )
    logging.basicConfig(
        level=os.environ.get("NYDUS_FSCACHE_LOG", "INFO"),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    layers = Layers(Client(args.root), config.request())
    with listen(args.socket, layers) as server:
        signal.signal(signal.SIGTERM, _interrupted)
        Unit().ready(f"listening at {args.socket}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            args.socket.unlink(missing_ok=True)
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
