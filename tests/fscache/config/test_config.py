"""What is read out of nydusd's configurations, old and new."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_fscache.backend.make import make_backend
from nydus_fscache.config.nydusd import (
    Cache,
    ExternalBackend,
    Overlay,
    Prefetch,
    Rafs,
    blob_entries,
    blob_entry,
    parse,
    with_registry_auth,
)
from nydus_fscache.config.tuning import Tuning
from nydus_fscache.errors import UsageError
from nydus_fscache.fetch.job import MAX_REQUEST, MIB
from nydus_fscache.fetch.pace import Pace

BACKEND = {"type": "localfs", "localfs": {"dir": "/b"}}
OLD_BACKEND = {"backend": {"type": "localfs", "config": {"dir": "/b"}}}
OLD_PREFETCH = {
    "enable": True, "threads_count": 3, "merging_size": 131072, "bandwidth_rate": 9,
}  # fmt: skip
NEW_PREFETCH = {"enable": True, "threads": 3, "batch_size": 131072, "bandwidth_limit": 9}
TOML = """
version = 2
[backend]
type = "localfs"
[backend.localfs]
dir = "/b"
[rafs]
batch_size = 4096
[cache.prefetch]
enable = true
threads = 3
batch_size = 131072
bandwidth_limit = 9
prefetch_all = true
"""
ALL = Tuning(prefetch="all", threads=3, merging=131072, bandwidth=9)


@pytest.mark.parametrize(
    ("document", "tuning"),
    [
        (BACKEND, Tuning()),
        ({"device": OLD_BACKEND, "mode": "direct"}, Tuning()),
        ({"device": OLD_BACKEND, "amplify_io": 0, "warmup": 1}, Tuning(amplify=0)),
        ({"device": OLD_BACKEND, "fs_prefetch": OLD_PREFETCH}, ALL),
        (
            {"device": OLD_BACKEND, "fs_prefetch": {"enable": True, "prefetch_all": False}},
            Tuning(prefetch="table"),
        ),
        ({"device": OLD_BACKEND, "fs_prefetch": {"enable": False}}, Tuning(prefetch="none")),
        ({"version": 2, "backend": BACKEND}, Tuning()),
        (
            {"version": 2, "backend": BACKEND, "rafs": {"prefetch": NEW_PREFETCH}},
            Tuning(prefetch="table", threads=3, merging=131072, bandwidth=9),
        ),
        (TOML, Tuning(amplify=4096, prefetch="all", threads=3, merging=131072, bandwidth=9)),
    ],
)
def test_documents(document: object, tuning: Tuning) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    config = parse(text, "file")
    assert (config.backend, config.tuning) == (BACKEND, tuning)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "7", "[" * 100_000,
        '{"version": 3}', '{"version": 2}', '{"device": {}}', '{"device": 1}',
        '{"device": {"backend": {"type": "localfs"}}, "amplify_io": "1M"}',
        '{"device": {"backend": {"type": "localfs"}}, "amplify_io": -1}',
        '{"device": {"backend": {"type": "localfs"}}, "fs_prefetch": {"enable": true,'
        ' "threads_count": 0}}',
        '{"device": {"backend": {"type": "localfs"}}, "fs_prefetch": {"enable": true,'
        ' "merging_size": 536870912}}',
        '{"device": {"backend": {"type": "localfs"}}, "fs_prefetch": []}',
    ],
)  # fmt: skip
def test_documents_that_say_nothing_usable(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, "file")


@pytest.mark.parametrize(
    ("tuning", "piece"),
    [
        (Tuning(merging=1), MIB),
        (Tuning(merging=1000), MIB // 4),
        (Tuning(merging=300_000), MIB // 2),
        (Tuning(merging=1 << 28), MAX_REQUEST),
        (Tuning(merging=MIB, bandwidth=300_000), 300_000),
    ],
)
def test_requests_of_prefetch_are_as_large_as_nydusd_makes_them(tuning: Tuning, piece: int) -> None:
    pace = Pace()
    pace.tuning = tuning
    assert pace.piece() == piece


WHOLE_1 = {
    "device": {
        "id": "/one",
        "backend": {
            "type": "registry",
            "config": {
                "readahead": False, "host": "r.example", "repo": "a/b", "auth": "dTpw",
                "scheme": "https", "timeout": 5, "connect_timeout": 5, "retry_limit": 2,
                "proxy": {"url": "", "fallback": False, "check_interval": 5, "colour": 1},
                "mirrors": [{"host": "http://m", "headers": {"A": "b"}, "new": 1}],
                "unheard_of": True,
            },
        },
        "external_backends": [{"type": "x", "config": {"a": "b"}, "patch": {"c": "d"}}],
        "cache": {
            "type": "blobcache", "compressed": True, "validate": True,
            "config": {"work_dir": "/w", "disable_indexed_map": True, "more": 1},
        },
    },
    "mode": "cached", "digest_validate": True, "iostats_files": True, "enable_xattr": True,
    "access_pattern": True, "latest_read_files": True, "amplify_io": 65536,
    "fs_prefetch": {**OLD_PREFETCH, "prefetch_all": False, "stream_prefetch": True},
    "warmup": 3, "id_mapping": [0, 1, 2],
}  # fmt: skip


def test_version_1_whole() -> None:
    config = parse(json.dumps(WHOLE_1), "file")
    prefetch = Prefetch(True, 3, 131072, 9, False, True)
    assert config.cache == Cache("filecache", "/w", True, True, prefetch, True)
    assert config.rafs == Rafs("cached", 65536, True, True, True, True, True, prefetch)
    assert config.id == "/one"
    assert config.id_mapping == (0, 1, 2)
    assert config.external_backends == (ExternalBackend("x", {"a": "b"}, {"c": "d"}),)
    assert config.tuning == Tuning(65536, "table", 3, 131072, 9)
    options = config.backend["registry"]
    assert options["timeout"] == 5
    assert options["proxy"] == {"url": "", "fallback": False, "check_interval": 5}
    assert options["mirrors"] == [{"host": "http://m", "headers": {"A": "b"}}]
    assert set(config.ignored) == {
        "device.backend.config.proxy.colour", "device.backend.config.mirrors[0].new",
        "device.backend.config.unheard_of", "device.cache.config.more", "warmup",
    }  # fmt: skip
    make_backend(config.backend).close()


WHOLE_2 = """
version = 2
id = "two"
new_member = 1
[backend]
type = "s3"
[backend.s3]
region = "r"
bucket_name = "b"
skip_verify = true
ca_cert_files = []
[[external_backends]]
type = "x"
[cache]
type = "fscache"
validate = true
[cache.fscache]
work_dir = "/w"
[rafs]
mode = "cached"
enable_xattr = true
[rafs.prefetch]
enable = true
[overlay]
upper_dir = "/u"
work_dir = "/o"
"""


def test_version_2_whole() -> None:
    config = parse(WHOLE_2, "file")
    assert config.cache == Cache("fscache", "/w", validate=True)
    assert config.rafs == Rafs("cached", enable_xattr=True, prefetch=Prefetch(True))
    assert config.overlay == Overlay("/u", "/o")
    assert config.tuning == Tuning(prefetch="table")
    assert config.backend["s3"] == {
        "region": "r", "bucket_name": "b", "skip_verify": True, "ca_cert_files": [],
    }  # fmt: skip
    assert config.ignored == ("new_member",)


AS_THE_SNAPSHOTTER = {
    "type": "bootstrap", "id": "9f", "domain_id": "9f",
    "config": {
        "id": "9f", "backend_type": "registry",
        "backend_config": {
            "readahead": False, "host": "index.docker.io", "repo": "library/nginx",
            "auth": "dXNlcjpwYXNz", "scheme": "https", "proxy": {"fallback": False},
            "timeout": 5, "connect_timeout": 5, "retry_limit": 2,
        },
        "cache_type": "fscache", "cache_config": {"work_dir": "/s/42/fs"},
        "prefetch_config": {
            "enable": True, "threads_count": 8, "merging_size": 1048576, "bandwidth_rate": 0,
            "prefetch_all": False,
        },
        "metadata_path": "/s/42/fs/image/image.boot",
    },
}  # fmt: skip
VERSION_2_ENTRY = {
    "version": 2, "id": "f",
    "backend": {"type": "registry", "registry": {"host": "r.example", "repo": "a/b"}},
    "cache": {
        "type": "fscache", "fscache": {"work_dir": "/w"},
        "prefetch": {"enable": True, "threads": 8, "batch_size": 1048576},
    },
    "metadata_path": "/b/image.boot",
}  # fmt: skip


def test_blob_entries() -> None:
    old = blob_entry(AS_THE_SNAPSHOTTER, "body")
    assert (old.id, old.domain_id) == ("9f", "9f")
    assert old.config.metadata_path == "/s/42/fs/image/image.boot"
    assert old.config.cache.work_dir == "/s/42/fs"
    assert old.config.tuning == Tuning(None, "all", 8, 1048576, 0)  # of whole blobs, as nydusd
    assert old.config.backend["registry"]["repo"] == "library/nginx"
    assert old.config.ignored == ()
    new = blob_entry({**AS_THE_SNAPSHOTTER, "config_v2": VERSION_2_ENTRY}, "body")
    assert new.config.metadata_path == "/b/image.boot"  # it wins over the older form
    assert new.config.backend["registry"]["host"] == "r.example"
    text = json.dumps({"blobs": [AS_THE_SNAPSHOTTER], "other": 1})
    assert [e.id for e in blob_entries(text, "file")] == ["9f"]
    assert blob_entries('{"device": {}}', "file") == []


def test_what_is_missing_in_a_legacy_entry_has_defaults() -> None:
    config = dict(AS_THE_SNAPSHOTTER["config"])
    config.pop("prefetch_config")
    entry = blob_entry({**AS_THE_SNAPSHOTTER, "config": config}, "body")
    assert entry.config.tuning == Tuning()
    config["prefetch_config"] = {"enable": True}
    entry = blob_entry({**AS_THE_SNAPSHOTTER, "config": config}, "body")
    assert entry.config.tuning == Tuning(prefetch="all")


def changed(document: dict[str, Any], path: str, value: object) -> str:
    """The document with another value at ``a.b.c``, as JSON."""
    copy = json.loads(json.dumps(document))
    *tables, last = path.split(".")
    place = copy
    for name in tables:
        place = place[name]
    place[last] = value
    return json.dumps(copy)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("device.id", 1),
        ("device.backend.type", "http"),
        ("device.backend.config", []),
        ("device.backend.config.host", 5),
        ("device.backend.config.timeout", "5"),
        ("device.backend.config.timeout", -1),
        ("device.backend.config.proxy.fallback", "no"),
        ("device.backend.config.proxy", "http://p"),
        ("device.cache.type", "memory"),
        ("device.cache.config.work_dir", 1),
        ("device.cache.compressed", "yes"),
        ("mode", "turbo"),
        ("enable_xattr", 1),
        ("amplify_io", 1 << 30),
        ("amplify_io", 1.5),
        ("fs_prefetch.enable", "true"),
        ("fs_prefetch.threads_count", 2000),
        ("fs_prefetch.bandwidth_rate", -5),
    ],
)
def test_a_wrong_value_is_named_by_its_path(path: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse(changed(WHOLE_1, path, value), "file")
    assert str(caught.value).startswith(f"file: {path} is ")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("config.backend_config.retry_limit", True, "config.backend_config.retry_limit is True"),
        ("config.backend_type", "ftp", "config.backend_type is 'ftp'"),
        ("config.backend_config.host", "", "config.backend_config.host is missing"),
        ("config.cache_type", None, "config.cache_type is missing"),
        ("config.cache_config", None, "config.cache_config is missing"),
        ("config.compressed", True, "config.compressed is True"),
        ("type", "datablob", "type is 'datablob'"),
        ("id", "a/b", "id is 'a/b'"),
        ("domain_id", "/", "domain_id is '/'"),
        ("id", None, "id is missing"),
        ("config", None, "config or config_v2 is missing"),
        ("config_v2", {"version": 1}, "config_v2.version is 1"),
        ("config_v2", {"version": 2}, "config_v2.backend is missing"),
        (
            "config_v2",
            {**VERSION_2_ENTRY, "cache": {"type": "fscache"}},
            "config_v2.cache.fscache is missing",
        ),
    ],
)
def test_a_wrong_blob_entry(path: str, value: object, message: str) -> None:
    document = json.loads(changed(AS_THE_SNAPSHOTTER, path, value))
    with pytest.raises(UsageError, match=re.escape(f"body: {message}")):
        blob_entry(document, "body")


def test_a_secret_is_not_shown_by_its_repr() -> None:
    config = parse(json.dumps(WHOLE_1), "file")
    assert "dTpw" not in repr(config)
    with pytest.raises(UsageError, match="auth is a list") as caught:
        parse(changed(WHOLE_1, "device.backend.config.auth", ["dTpw"]), "file")
    assert "dTpw" not in str(caught.value)


def test_other_credentials() -> None:
    for text in (json.dumps(WHOLE_1), changed(WHOLE_1, "device.backend.config.auth", None)):
        found = parse(with_registry_auth(text, "YTpi", "file"), "file")
        assert found.backend["registry"]["auth"] == "YTpi"
    bare = json.dumps({"type": "registry", "registry": {"host": "h"}})
    assert json.loads(with_registry_auth(bare, "YTpi", "f"))["registry"]["auth"] == "YTpi"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                (
                    "version", "device", "backend", "type", "registry", "config", "cache", "rafs",
                    "prefetch", "enable", "proxy", "mirrors", "fs_prefetch", "host", "repo",
                )
            ),
            inner,
            max_size=4,
        ),
        max_leaves=20,
    )
)  # fmt: skip
def test_any_document_is_parsed_or_refused(document: object) -> None:
    with contextlib.suppress(UsageError):
        parse(json.dumps(document), "file")
    for known in (WHOLE_1, VERSION_2_ENTRY):
        with contextlib.suppress(UsageError):
            parse(json.dumps({**known, "backend": document, "device": document}), "file")
    with contextlib.suppress(UsageError):
        blob_entry(document, "body")


@pytest.mark.parametrize(
    "ids", [5, [], [0, 1], [0, 1, 0], [0, -1, 2], [0, 1, "2"], [0, 1, True], [0, 1 << 31, 1 << 31]]
)
def test_id_mappings_that_cannot_be(ids: object) -> None:
    document = {**WHOLE_1, "id_mapping": ids}
    with pytest.raises(UsageError, match="id_mapping"):
        parse(json.dumps(document), "file")
