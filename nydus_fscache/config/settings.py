"""The configuration file of a node: what an operator sets once, instead of options each time.

``/etc/nydus-fscache/config.toml``, or ``$NYDUS_FSCACHE_CONFIG``.  Every key has a variable of the
environment too, by which it reaches keeper and service.  An option wins over the environment, the
environment over the file, the file over what is built in.  A file that does not exist is empty;
one that is wrong is an error that names the key.

A service reads the file anew when it starts (an upgrade, ``systemctl reload``): variables that came
from the file change then, and those that were given stay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from nydus_fscache.errors import UsageError
from nydus_fscache.files import DEFAULT_ROOT, ROOT_VARIABLE
from rafs_v6.values import dataclass

FILE = "NYDUS_FSCACHE_CONFIG"
DEFAULT_FILE = Path("/etc/nydus-fscache/config.toml")
_FROM_FILE = "NYDUS_FSCACHE_FROM_FILE"  # names of variables, with commas between
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TOO_LONG_S = 86400.0


def _path(value: Any) -> str:
    if not isinstance(value, str) or not os.path.isabs(value):
        raise ValueError("an absolute path")
    return value


def _size(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("a size, such as 500000000, \"500M\" or \"20G\"")
    return str(int(found[1]) * _UNITS[found[2]])


def _seconds(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _TOO_LONG_S:
        raise ValueError("a number of seconds")
    return str(value)


def _count(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError("a number, 0 or more")
    return str(value)


def _one_of(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names or not isinstance(value, str):
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return check


def _unit(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w@:.-]{1,200}\.service", value, re.ASCII):
        raise ValueError("the name of a unit, such as nydus-fscache.service")
    return value


def _hosts(value: Any) -> str:
    is_list = isinstance(value, list)
    if not is_list or not all(isinstance(v, str) and _HOST.fullmatch(v) for v in value):
        raise ValueError('a list of hosts, such as ["registry.lan:5000"]')
    return ",".join(value)


_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?|\[[0-9a-fA-F:]+\](:\d{1,5})?")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9.]+):\d{1,5}")


def _address(value: Any) -> str:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise ValueError("an address with a port, such as 127.0.0.1:9230 or [::1]:9230")
    return value


@dataclass(frozen=True, slots=True)
class Key:
    """``check``: a value of the file as the text that the variable has, or ``ValueError`` with what
    it must be.  ``default``: as the file would say it; "": nothing."""

    name: str
    variable: str
    check: Callable[[Any], str]
    default: Any
    text: str


KEYS = (
    Key("root", ROOT_VARIABLE, _path, DEFAULT_ROOT,
        "State and cache of the daemon, on ext4, xfs or btrfs (--root)."),
    Key("mount.transport", "NYDUS_FSCACHE_TRANSPORT",
        _one_of("auto", "cachefiles", "fanotify", "fuse", "fuse-file", "fuse-loop", "fuse-tree"),
        "auto",
        "The kernel interface of new mounts (mount --transport)."),
    Key("mount.prefetch", "NYDUS_FSCACHE_PREFETCH",
        _one_of("auto", "none", "table", "trace", "all"), "auto",
        "What new mounts load ahead (mount --prefetch)."),
    Key("mount.backend", "NYDUS_FSCACHE_BACKEND", _path, "",
        "A configuration of nydusd, or its backend object alone, for images that are mounted by "
        "name: mirrors, proxies, authorities of registries (mount --backend)."),
    Key("cache.limit", "NYDUS_FSCACHE_CACHE_LIMIT", _size, "",
        "Unused blobs are deleted when the cache is larger; 0: never (--cache-limit). Without it "
        "the limit that was given last holds."),
    Key("cache.cachefiles", "NYDUS_FSCACHE_CACHEFILES", _path, "",
        "The directory of cachefiles on-demand; by default ROOT/cachefiles."),
    Key("store.authfile", "NYDUS_FSCACHE_STORE_AUTHFILE", _path, "",
        "Credentials of the layer store, as podman login writes them (store --authfile)."),
    Key("store.backend", "NYDUS_FSCACHE_STORE_BACKEND", _path, "",
        "Where its images have their blobs, when not in the registry (store --backend)."),
    Key("store.plain_http", "NYDUS_FSCACHE_STORE_PLAIN_HTTP", _hosts, [],
        "Registries that the layer store asks over http (store --plain-http)."),
    Key("graphdriver.backend", "NYDUS_FSCACHE_GRAPHDRIVER_BACKEND", _path, "",
        "Where blobs are of the images that Docker pulls (graphdriver --backend)."),
    Key("metrics.listen", "NYDUS_FSCACHE_METRICS", _address, "",
        "Serve Prometheus' metrics at this address, too (serve --metrics)."),
    Key("log.level", "NYDUS_FSCACHE_LOG", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO",
        "What is logged at least."),
    Key("log.to", "NYDUS_FSCACHE_LOG_TO", _one_of("stderr", "journal", "file"), "stderr",
        "stderr: standard error, which is ROOT/daemon.log when a command started the daemon, and "
        "the journal under systemd; journal: the journal with levels; file: ROOT/daemon.log."),
    Key("log.max_size", "NYDUS_FSCACHE_LOG_SIZE", _size, "16M",
        "ROOT/daemon.log is rotated when it is larger; 0: never."),
    Key("log.keep", "NYDUS_FSCACHE_LOG_KEEP", _count, 3, "Rotated logs that stay."),
    Key("log.rate", "NYDUS_FSCACHE_LOG_RATE", _count, 10,
        "Lines of one kind a second, in the long run; what goes beyond is counted. 0: no limit."),
    Key("daemon.unit", "NYDUS_FSCACHE_UNIT", _unit, "",
        "The systemd unit that runs the daemon of the root named above: commands that need a "
        "daemon start it, instead of a daemon of their own."),
    Key("daemon.start_timeout", "NYDUS_FSCACHE_START_S", _seconds, 60,
        "Seconds that a start may make no progress before it is tried anew."),
    Key("daemon.deny_after", "NYDUS_FSCACHE_DENY_AFTER_S", _seconds, 30,
        "Seconds that readers wait while no service runs, before they get EIO."),
    Key("daemon.call_timeout", "NYDUS_FSCACHE_CALL_TIMEOUT_S", _seconds, 30,
        "Seconds that a client of the API may take for its request."),
)  # fmt: skip
_BY_NAME = {key.name: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class InForce:
    """``value``: as the variable has it; ``source``: "environment", "file" or "default"."""

    key: Key
    value: str
    source: str


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    return Path(environment.get(FILE) or DEFAULT_FILE)


def read(file: Path) -> dict[str, str]:
    """Variables by name, of what the file says.  Raises ``UsageError``."""
    try:
        data = file.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{file} cannot be read: {e}", hint="see nydus-fscache config") from e
    import tomllib  # noqa: PLC0415 - only where there is a file

    try:
        document = tomllib.loads(data)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{file}: {e}", hint="see https://toml.io") from e
    found = {}
    for name, value in _flat(document, ""):
        key = _BY_NAME.get(name)
        if key is None:
            raise UsageError(f"{file}: there is no key {name}", hint=_nearest(name))
        try:
            found[key.variable] = key.check(value)
        except ValueError as e:
            raise UsageError(f"{file}: {name} is {value!r}", hint=f"it must be {e}") from e
    return found


def apply(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that the file has and nobody has given; unset those that it had before.
    Raises ``UsageError``, and changes nothing then."""
    before = set((environment.get(_FROM_FILE) or "").split(",")) - {""}
    found = read(config_file(environment))
    found = {n: v for n, v in found.items() if n in before or not environment.get(n)}
    for name in before - set(found):
        environment.pop(name, None)
    environment.update(found)
    if found or before:
        environment[_FROM_FILE] = ",".join(sorted(found))


def give(variable: str, value: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """An option says so: a service that reads the file again leaves it."""
    environment[variable] = value
    names = (environment.get(_FROM_FILE) or "").split(",")
    if variable in names:
        environment[_FROM_FILE] = ",".join(name for name in names if name != variable)


def in_force(environment: Mapping[str, str] = os.environ) -> list[InForce]:
    """After ``apply``."""
    from_file = (environment.get(_FROM_FILE) or "").split(",")
    found = []
    for key in KEYS:
        if value := environment.get(key.variable):
            source = "file" if key.variable in from_file else "environment"
            found.append(InForce(key, value, source))
        else:
            value = key.check(key.default) if key.default else ""
            found.append(InForce(key, value, "default"))
    return found


def example() -> str:
    """A file with every key and its default, as comments."""
    lines = ["# nydus-fscache: see nydus-fscache.toml(5). What is commented out is the default."]
    table = ""
    for key in KEYS:
        section, _, name = key.name.rpartition(".")
        if section != table:
            lines += ["", f"[{section}]"]
            table = section
        lines += ["", *(f"# {line}" for line in _wrapped(key.text))]
        shown = _toml("…" if key.default == "" else key.default)
        lines.append(f"#{name} = {shown}")
    return "\n".join([*lines, ""])


def _wrapped(text: str) -> list[str]:
    import textwrap  # noqa: PLC0415 - only for people

    return textwrap.wrap(text, 90)


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _flat(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, Mapping) and where not in _BY_NAME:
            yield from _flat(value, where) if value else ()
        else:
            yield where, value


def _nearest(name: str) -> str:
    import difflib  # noqa: PLC0415 - only for an error

    near = difflib.get_close_matches(name, _BY_NAME, 1)
    return f"do you mean {near[0]}?" if near else "see nydus-fscache config for all keys"
