"""Credentials for a registry, from where people keep them already.

In this order: ``IMAGE_PULL_AUTH`` in the environment, then Podman's file where
``$REGISTRY_AUTH_FILE`` names one, else Docker's ``config.json`` (``$DOCKER_CONFIG``, ~/.docker): a
credential helper of that host, the general helper, the entry itself.  Secrets are returned, never
logged; a helper gets the host on its standard input and has a time limit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.registry.auth import IDENTITY_USER, basic, check_auth
from nydus_fscache.registry.reference import HUB_HOST, canonical_host

_HELPER_LIMIT_S = 30.0
_CONFIG_LIMIT = 4 * 1024 * 1024
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")


def find_auth(host: str, environ: Mapping[str, str] = os.environ) -> str:
    """Base64 of user:password for ``host``, or empty when there is nothing for it.

    Any spelling of the host will do, as of Docker Hub (``canonical_host``).
    An identity token comes as the password of the user ``<token>``.
    """
    override = environ.get("IMAGE_PULL_AUTH", "")
    if override:
        return check_auth(override)
    host = canonical_host(host)
    path = auth_file(environ)
    config = _read_config(path)
    keys = (*_HUB_KEYS, HUB_HOST) if host == HUB_HOST else (host,)
    helpers = _mapping(config, "credHelpers")
    for key in (*keys, *(name for name in helpers if canonical_host(name) == host)):
        if isinstance(helpers.get(key), str):
            return _ask_helper(helpers[key], key)
    if isinstance(config.get("credsStore"), str) and config["credsStore"]:
        for key in keys:
            found = _ask_helper(config["credsStore"], key)
            if found:
                return found
    auths = _mapping(config, "auths")
    entries = {canonical_host(_entry_host(name)): entry for name, entry in auths.items()}
    entries |= {_entry_host(name): entry for name, entry in auths.items()}
    for key in keys:
        entry = entries.get(_entry_host(key))
        if isinstance(entry, Mapping):
            return _entry_auth(entry, path, key)
    return ""


def auth_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Podman's or Docker's; whether it exists is not looked at."""
    if environ.get("REGISTRY_AUTH_FILE"):  # containers-auth.json(5): the same form
        return Path(environ["REGISTRY_AUTH_FILE"])
    directory = environ.get("DOCKER_CONFIG") or os.path.join(environ.get("HOME", "/"), ".docker")
    return Path(directory, "config.json")


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_CONFIG_LIMIT))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        # not the error's text: of bad JSON it may quote a secret
        reason = e.strerror if isinstance(e, OSError) else "not JSON"
        raise UsageError(f"cannot read {path}: {reason}", hint="docker login writes it") from None
    return config if isinstance(config, dict) else {}


def _mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def _entry_host(name: str) -> str:
    """Docker writes plain hosts, older tools URLs; the Hub's own key is a URL with a path."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.rstrip("/")


def _entry_auth(entry: Mapping[str, Any], path: Path, key: str) -> str:
    identity = entry.get("identitytoken")
    if isinstance(identity, str) and identity:
        return basic(IDENTITY_USER, identity)
    auth, user, password = (entry.get(name) for name in ("auth", "username", "password"))
    if isinstance(auth, str) and auth:
        try:
            # docker pads with zero bytes in some versions
            return check_auth(basic(*b64decode(auth).decode().rstrip("\0").split(":", 1)))
        except (ValueError, TypeError):
            raise UsageError(
                f"{path}: auth of {key} is not base64 of user:password", hint="docker login again"
            ) from None
    if isinstance(user, str) and isinstance(password, str):
        return basic(user, password)
    return ""


def _ask_helper(name: str, key: str) -> str:
    """``docker-credential-NAME get``: the server on stdin, JSON on stdout."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise UsageError("a credential helper's name in config.json is not a program's name")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=key.encode(),
            capture_output=True,
            timeout=_HELPER_LIMIT_S,
            check=False,
        )
    except FileNotFoundError as e:
        raise UsageError(
            f"{program} is not installed, but config.json names it",
            hint="install it, or take it out of config.json",
        ) from e
    except subprocess.TimeoutExpired as e:
        raise BackendError(f"{program} gave no answer in {_HELPER_LIMIT_S:.0f} s") from e
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        if "credentials not found" in said:
            return ""
        raise BackendError(f"{program} failed for {key}", hint=f"echo {key} | {program} get")
    try:
        answer = json.loads(done.stdout)
        return basic(answer["Username"], answer["Secret"]) if answer["Secret"] else ""
    except (ValueError, KeyError, TypeError):
        raise BackendError(f"{program} gave no valid answer for {key}") from None
