"""Options that commands share, and their values."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from nydus_fscache.cli.nydusify.options import NO_ENV, Arguments, Option
from nydus_fscache.convert.platforms import Platform, parse_all
from nydus_fscache.convert.readers import BackendBlobs
from nydus_fscache.convert.run import Place
from nydus_fscache.errors import UsageError
from nydus_fscache.registry.access import Trust
from nydus_fscache.registry.auth import basic, check_auth
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.repository import Repository

BACKENDS = ("oss", "s3", "localfs")
_CONFIG_LIMIT = 1 << 20
_NO = (NO_ENV,)
_SIZES = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

PLATFORMS = (
    Option("all-platforms", "all platforms of an index", False, env=_NO),
    Option("platform", "only these platforms, like linux/amd64,linux/arm64", env=_NO),
)
PLAIN_HTTP = Option("plain-http", "ask all registries over http", False)
LOGIN = Option(
    "username", "USER or USER:PASSWORD for the target's registry; else docker's config.json",
    env=("NYDUSIFY_USERNAME",), value="USER", secret=True,
)  # fmt: skip
NYDUS_IMAGE = Option("nydus-image", "another nydus-image than our own", value="PROGRAM")


def work_dir(default: str) -> Option:
    return Option("work-dir", "for temporary files", default, value="DIR")


def insecure(side: str) -> Option:
    return Option(f"{side}-insecure", "do not verify the registry's certificate", False)


def backend(prefix: str = "", default: str = "") -> tuple[Option, ...]:
    """All of them share the environment's names."""
    lead = f"{prefix}-" if prefix else ""
    return (
        Option(f"{lead}backend-type", f"where blobs are: {', '.join(BACKENDS)}", default,
               env=("BACKEND_TYPE",), value="TYPE"),
        Option(f"{lead}backend-config", "its options, as JSON", env=("BACKEND_CONFIG",),
               value="JSON", secret=True),
        Option(f"{lead}backend-config-file", "a file of that JSON", env=("BACKEND_CONFIG_FILE",),
               value="FILE"),
    )  # fmt: skip


def backend_of(args: Arguments, prefix: str = "") -> tuple[str, dict[str, Any]] | None:
    """Type and options; None when no type is given."""
    lead = f"{prefix}-" if prefix else ""
    kind, text = args.text(f"{lead}backend-type"), args.text(f"{lead}backend-config")
    file = args.text(f"{lead}backend-config-file")
    if text and file:
        raise UsageError(
            f"--{lead}backend-config conflicts with --{lead}backend-config-file"
        )
    if not kind:
        if args.given(f"{lead}backend-config") or args.given(f"{lead}backend-config-file"):
            raise UsageError(
                f"--{lead}backend-config needs --{lead}backend-type",
                hint=f"one of {', '.join(BACKENDS)}",
            )
        return None
    if kind not in BACKENDS:
        raise UsageError(f"--{lead}backend-type should be one of [{' '.join(BACKENDS)}]")
    if file:
        text = read_small(Path(file))
    if not text.strip():
        raise UsageError(
            f"backend configuration is empty, please specify option '--{lead}backend-config'"
        )
    try:
        config = json.loads(text)
    except ValueError as e:
        raise UsageError(f"--{lead}backend-config is not JSON: {e}") from e
    if not isinstance(config, dict):
        raise UsageError(f"--{lead}backend-config is not a JSON object")
    return kind, config


def read_small(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_CONFIG_LIMIT + 1)
    if len(data) > _CONFIG_LIMIT:
        raise UsageError(f"{path}: more than {_CONFIG_LIMIT} bytes are not a configuration")
    return data.decode("utf-8", "replace")


def trust_of(
    args: Arguments, side: str, name: ImageName, target: ImageName | None,
    source: ImageName | None = None,
) -> Trust:  # fmt: skip
    """``side``: of the option ``--SIDE-insecure``.  ``name``: any image of this run.

    ``--username`` counts for the target's registry, ``IMAGE_PULL_AUTH`` for the source's
    (without a source, the target's): a secret goes to the one host that it is for.
    """
    host = name.reference.host
    pulled = source or (name if side == "source" else target)
    auth = ""
    if target is not None and host == target.reference.host:
        auth = login(args)
    if not auth and pulled is not None and host == pulled.reference.host:
        auth = check_auth(os.environ.get("IMAGE_PULL_AUTH", ""))
    return Trust(args.flag(f"{side}-insecure"), args.flag("plain-http"), auth)


def login(args: Arguments) -> str:
    text = args.text("username")
    if not text:
        return ""
    user, colon, password = text.partition(":")
    return basic(user, password if colon else _password(user))


@cache
def _password(user: str) -> str:
    """Asked for once."""
    password = os.environ.get("NYDUSIFY_PASSWORD", "")
    if password:
        return password
    if not sys.stdin.isatty():
        raise UsageError("--username without a password", hint="set $NYDUSIFY_PASSWORD")
    return getpass.getpass(f"Password of {user}: ")


def place_of(
    args: Arguments, side: str, text: str, target: ImageName | None = None, *,
    source: ImageName | None = None, archive: str = "",
) -> Place:  # fmt: skip
    name = ImageName.parse(text)
    trust = trust_of(args, side, name, target, source)
    return Place(name, trust, Path(archive) if archive else None)


def platforms_of(args: Arguments) -> tuple[Platform, ...]:
    return () if args.flag("all-platforms") else parse_all(args.text("platform"))


def duration_s(text: str, option: str) -> float:
    """As Go writes durations: 5s, 1m30s."""
    parts = _DURATION.findall(text)
    if text == "0":
        return 0.0
    if not text or "".join(parts) != text:
        raise UsageError(f'parse {option}: time: invalid duration "{text}"', hint="like 5s or 1m")
    return sum(
        float(re.sub(r"[a-zµ]+$", "", part)) * _UNITS[re.sub(r"^[0-9.]+", "", part)]
        for part in parts
    )


def chunk_bytes(text: str) -> int:
    """``10MB`` (SI) and ``10MiB``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", text, re.IGNORECASE)
    if not found:
        unit = re.sub(r"^[\d.\s]+", "", text)
        raise UsageError(
            f"invalid --push-chunk-size option: unhandled size name: {unit}", hint="like 10MB"
        )
    unit = found[2].lower()
    step = 1024 ** "bkmgt".index(unit or "b") if found[3] else _SIZES[unit]
    return int(float(found[1]) * step)


def one_of(args: Arguments, name: str, allowed: Sequence[str]) -> str:
    value = args.text(name)
    if value not in allowed:
        raise UsageError(f"--{name} should be one of [{' '.join(allowed)}]")
    return value


def registry_backend(store: Repository) -> tuple[str, dict[str, Any]]:
    """How a builder or daemon reads the blobs of a repository."""
    return "registry", {**store.client.backend_options(), "repo": store.repo}


def open_backend(
    config: tuple[str, dict[str, Any]] | None, stack: ExitStack
) -> BackendBlobs | None:
    """Closed by ``stack``."""
    if config is None:
        return None
    blobs = BackendBlobs(*config)
    stack.callback(blobs.close)
    return blobs
