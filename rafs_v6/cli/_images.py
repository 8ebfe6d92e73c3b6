"""Where a command finds its bootstrap and its blobs: the options, and what they lead to.

This library knows no networks.  ``main`` may be given ``Backends``; the program
``nydus-image`` gets them from nydus_fscache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from rafs_v6.cli._common import file_path
from rafs_v6.reader.blobs import Blobs, directory_blobs, file_blobs
from rafs_v6.writer.errors import BuildError, UsageError


class Backends(Protocol):
    """Both raise ``RafsError``."""

    def open(self, config: Mapping[str, Any]) -> AbstractContextManager[Blobs]:
        """``config``: the ``backend`` object of nydusd's configuration v2."""

    def of_nydusd(self, path: Path) -> Mapping[str, Any]:
        """That object out of a configuration of nydusd, new or old."""


_CONFIG_MAX = 1 << 20


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=file_path, nargs="?", metavar="BOOTSTRAP")
    parser.add_argument(
        "-B", "--bootstrap", type=file_path, help="the same, as older callers say it"
    )


def bootstrap_path(args: argparse.Namespace) -> Path:
    if args.source is not None and args.bootstrap is not None:
        raise UsageError("the bootstrap is given twice: by itself and by --bootstrap")
    path: Path | None = args.source or args.bootstrap
    if path is None:
        raise UsageError("which bootstrap? give its path")
    return path


def add_blobs(parser: argparse.ArgumentParser, *, single: bool = False) -> None:
    """``single``: also ``--blob FILE``, for images that have but one."""
    parser.add_argument(
        "-D", "--blob-dir", type=file_path, metavar="DIR", help="blobs, named by id"
    )
    if single:
        parser.add_argument("-b", "--blob", type=file_path, metavar="FILE", help="the only blob")
    parser.add_argument("--backend-type", metavar="TYPE", help="registry, s3, oss, localfs, …")
    parser.add_argument(
        "--backend-config", metavar="JSON",
        help="its options: JSON, or a file of it (backends.md lists them)",
    )  # fmt: skip
    parser.add_argument("--backend-config-file", type=file_path, metavar="FILE")
    parser.add_argument(
        "-C", "--config", type=file_path, metavar="FILE",
        help="a configuration of nydusd, whose backend holds the blobs",
    )  # fmt: skip


@contextlib.contextmanager
def open_blobs(args: argparse.Namespace) -> Iterator[Blobs | None]:
    """What the options name, a backend first; None when they name nothing."""
    options = None if args.config is not None else _backend_of_options(args)
    if args.config is not None or options is not None:
        backends: Backends | None = args.backends
        if backends is None:
            raise BuildError("no backends here: use the program nydus-image, or --blob-dir")
        with backends.open(options or backends.of_nydusd(args.config)) as blobs:
            yield blobs
    elif getattr(args, "blob", None) is not None:
        yield file_blobs(args.blob)
    elif args.blob_dir is not None:
        if not args.blob_dir.is_dir():
            raise BuildError(f"{args.blob_dir} is not a directory: give the one with the blobs")
        yield directory_blobs(args.blob_dir)
    else:
        yield None


@contextlib.contextmanager
def need_blobs(args: argparse.Namespace) -> Iterator[Blobs]:
    with open_blobs(args) as blobs:
        if blobs is None:
            raise UsageError("where are the blobs? give --blob-dir, or a backend")
        yield blobs


def _backend_of_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """A ``backend`` object; None when the options name no backend."""
    if args.backend_type is None:
        if args.backend_config or args.backend_config_file:
            raise UsageError("--backend-config needs --backend-type")
        return None
    path = args.backend_config_file
    text = args.backend_config or ""
    if path is None and not text.lstrip().startswith("{"):
        if not text:
            raise UsageError(f"--backend-type {args.backend_type} needs --backend-config")
        path = Path(text)
    options = _parse(_read(path), path) if path else _parse(text, "--backend-config")
    return {"type": args.backend_type, args.backend_type: options}


def _read(path: Path) -> str:
    with path.open("rb") as f:
        data = f.read(_CONFIG_MAX + 1)
    if len(data) > _CONFIG_MAX:
        raise BuildError(f"{path}: more than {_CONFIG_MAX} bytes are not a configuration")
    return data.decode("utf-8", "replace")


def _parse(text: str, where: object) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise BuildError(f"{where} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise BuildError(f"{where} does not hold a JSON object")
    return options
