"""Manifests and configs as Go's encoder writes them, so that equal images get equal digests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nydus_fscache.errors import BadImage
from nydus_fscache.registry.manifest import Descriptor
from nydus_fscache.registry.store import BlobStore, Document, put_blob

_CONFIG_KEYS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels",
    "StopSignal",
)  # fmt: skip
_HISTORY_KEYS = ("created", "created_by", "author", "comment", "empty_layer")
_TOP_KEYS = ("created", "author", "architecture", "os", "os.version", "os.features", "variant")
_ALWAYS = ("architecture", "os")
_ESCAPED = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_ESCAPED |= {chr(c): "\ufffd" for c in range(0xD800, 0xE000)}  # halves of letters, as Go reads them
_FRACTION = re.compile(r"\.(\d*?)0+(?=Z|[+-]\d\d:\d\d$)")
BOOTSTRAP_HISTORY = {"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"}


def go_json(document: object, *, indent: bool) -> bytes:
    """Keys in the order that they have; letters that HTML knows are escaped."""
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(
        document, indent=2 if indent else None, separators=separators, ensure_ascii=False
    )
    return "".join(_ESCAPED.get(c, c) for c in text).encode()


def image_config(
    config: Mapping[str, Any], diff_ids: Sequence[str], history: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The config of the result: what OCI knows of ``config``, over other layers."""
    top: dict[str, Any] = {}
    for key in _TOP_KEYS:
        value = config.get(key)
        if value or key in _ALWAYS:
            top[key] = _time(value) if key == "created" else value or ""
    inner = config.get("config")
    inner = inner if isinstance(inner, dict) else {}
    kept = {}
    for key in _CONFIG_KEYS:
        value = inner.get(key)
        if value:
            kept[key] = dict(sorted(value.items())) if isinstance(value, dict) else value
    top["config"] = kept
    top["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    entries = [
        {k: _time(h[k]) if k == "created" else h[k] for k in _HISTORY_KEYS if h.get(k)}
        for h in history
    ]
    if entries:
        top["history"] = entries
    return top


def store_config(
    images: BlobStore, media_type: str, config: Mapping[str, Any], diff_ids: Sequence[str],
    history: Iterable[Mapping[str, Any]], *, indent: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """``image_config`` as a blob of ``images``: what a manifest says of it."""
    body = go_json(image_config(config, diff_ids, history), indent=indent)
    return described(media_type, put_blob(images, body), len(body))


def _time(value: object) -> object:
    """Go drops zeros at the end of a fraction."""
    if not isinstance(value, str):
        return value
    return _FRACTION.sub(lambda m: f".{m[1]}" if m[1] else "", value)


def parse_config(body: bytes) -> dict[str, Any]:
    try:
        config = json.loads(body)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise BadImage("the image's config is not a JSON object", hint="push the image again")
    return config


def diff_ids_of(config: Mapping[str, Any], layers: int) -> list[str]:
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    found = found if isinstance(found, list) else []
    if len(found) != layers:
        raise BadImage(
            f"unmatched layers between manifest and config: {layers} != {len(found)}",
            hint="the image was changed by hand, or is an artifact of another kind",
        )
    return [str(d) for d in found]


def history_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = config.get("history")
    return [h for h in found if isinstance(h, dict)] if isinstance(found, list) else []


def manifest(
    media_type: str, config: Mapping[str, Any], layers: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, str], *, subject: Mapping[str, Any] | None = None,
    artifact_type: str = "",
) -> Document:  # fmt: skip
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type}
    if artifact_type:
        document["artifactType"] = artifact_type
    document |= {"config": dict(config), "layers": [dict(layer) for layer in layers]}
    if subject is not None:
        document["subject"] = dict(subject)
    if annotations:
        document["annotations"] = dict(sorted(annotations.items()))
    return Document(go_json(document, indent=True), media_type)


def described(
    media_type: str, digest: str, size: int, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size}
    if annotations:
        found["annotations"] = dict(sorted(annotations.items()))
    return found


def as_json(descriptor: Descriptor) -> dict[str, Any]:
    return described(
        descriptor.media_type, descriptor.digest, descriptor.size, descriptor.annotations
    )


def annotations_of(document: Mapping[str, Any]) -> dict[str, str]:
    found = document.get("annotations")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
