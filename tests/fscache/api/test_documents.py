"""The documents of nydusd's API, member by member, as nydusd 2.4 has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nydus_fscache.api.nydusd import documents
from nydus_fscache.config.nydusd import blob_entry, parse
from nydus_fscache.config.version_2 import as_version_2

BLOB = {
    "id": "b" * 64, "requests": 4, "errors": 1, "fetched": 3 << 20, "present": 1 << 20,
    "complete": True,
    "reads": {
        "ms": 900, "classes": [[0, 1, 3], [7, 4, 1]], "prefetched": 5000, "prefetches": 2,
        "prefetch_ms": 30, "began": 1000.25, "ended": 1001.5,
    },
}  # fmt: skip


def members(text: str) -> set[str]:
    return set(text.split())


def test_the_commit_is_the_same_in_both_places() -> None:
    """The snapshotter reads it with this pattern, and compares."""
    found = re.search(r"Git Commit:\s*(.+)", documents.VERSION_TEXT)
    assert found
    info = documents.daemon_info(None, None, "RUNNING", None)
    assert found[1] == info["version"]["git_commit"]
    for label in ("Version:", "Build Time:", "Profile:", "Rustc:"):
        assert label in documents.VERSION_TEXT


def test_daemon_info() -> None:
    info = documents.daemon_info("d1", "/run/s.sock", "INIT", None)
    assert info.keys() == members("version id supervisor state backend_collection")
    assert info["version"].keys() == members("package_ver git_commit build_time profile rustc")
    assert all(isinstance(value, str) for value in info["version"].values())
    assert (info["id"], info["supervisor"], info["state"]) == ("d1", "/run/s.sock", "INIT")


def test_error() -> None:
    assert documents.error("x") == {"code": "UNDEFINED", "message": "x"}


def test_fs_metrics() -> None:
    found = documents.fs_metrics("/one")
    flags = members(
        "files_account_enabled access_pattern_enabled record_latest_read_files_enabled"
        " measure_latency"
    )
    lists = {
        "block_count_read": 8, "fop_hits": 15, "fop_errors": 15, "read_latency_dist": 8,
        "fop_cumulative_latency_total": 15,
    }  # fmt: skip
    assert found.keys() == flags | lists.keys() | members("id nr_opens data_read")
    assert all(isinstance(found[name], bool) for name in flags)
    assert {name: len(found[name]) for name in lists} == lists
    assert found["id"] == "/one"


def test_backend_metrics() -> None:
    found = documents.backend_metrics("registry", [BLOB, BLOB])
    assert found.keys() == members(
        "backend_type read_count read_errors read_amount_total"
        " read_cumulative_latency_millis_total read_cumulative_latency_millis_dist"
        " read_count_block_size_dist read_latency_sizes_dist"
    )
    assert (found["read_count"], found["read_errors"]) == (8, 2)
    assert found["read_amount_total"] == 6 << 20
    assert found["read_cumulative_latency_millis_total"] == 1800
    assert found["read_count_block_size_dist"] == [6, 0, 0, 0, 0, 0, 0, 2]
    assert found["read_cumulative_latency_millis_dist"] == [0, 6, 0, 0, 2, 0, 0, 0]
    assert found["read_latency_sizes_dist"][7][4] == 2
    assert [len(row) for row in found["read_latency_sizes_dist"]] == [8] * 8


def test_blobcache_metrics() -> None:
    found = documents.blobcache_metrics("/cache", [BLOB])
    assert found.keys() == members(
        "underlying_files store_path partial_hits whole_hits total entries_count"
        " prefetch_data_amount prefetch_requests_count prefetch_workers prefetch_unmerged_chunks"
        " prefetch_cumulative_time_millis prefetch_begin_time_secs prefetch_begin_time_millis"
        " prefetch_end_time_secs prefetch_end_time_millis buffered_backend_size data_all_ready"
    )
    assert found["underlying_files"] == ["b" * 64 + ".blob.data"]
    assert found["data_all_ready"] is True
    assert documents.blobcache_metrics("/cache", [])["data_all_ready"] is False
    assert found["prefetch_data_amount"] == 5000
    assert (found["prefetch_begin_time_secs"], found["prefetch_begin_time_millis"]) == (1000, 250)
    assert (found["prefetch_end_time_secs"], found["prefetch_end_time_millis"]) == (1001, 500)
    closed = documents.blobcache_metrics(
        "/cache", documents.blobs_of({"blobs": []}, [{"blobs": ["c" * 64]}])
    )
    assert closed["prefetch_end_time_secs"] == closed["total"] == 0
    counters = [v for k, v in found.items() if k not in ("underlying_files", "store_path")]
    assert all(isinstance(value, int) for value in counters)


def test_events_are_bounded() -> None:
    ring = documents.ErrorRing()
    for number in range(600):
        ring.add(f"error {number}")
    found = ring.document()
    assert found.keys() == members("max_errors total_errors max_size total_size errors")
    assert (found["max_errors"], found["max_size"]) == (500, 51200)
    assert found["total_errors"] == 600
    assert len(found["errors"]) == 500
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT - error 599", found["errors"][-1])
    ring.add("x" * 60_000)
    assert len(ring.document()["errors"]) == 1


def test_super_block(golden: Path) -> None:
    found = documents.super_block(golden / "images" / "layers-zstd" / "image.boot")
    assert found.keys() == members(
        "magic version sb_size root_inode chunk_size batch_size inodes_count flags"
        " inode_table_entries inode_table_offset blob_table_size blob_table_offset"
        " extended_blob_table_offset extended_blob_table_entries blob_device_table_count"
        " blob_device_table_offset prefetch_table_offset prefetch_table_entries attr_timeout"
        " entry_timeout is_chunk_dict meta_blkaddr root_nid chunk_table_offset chunk_table_size"
    )
    assert found["magic"] == 0xE0F5E1E2
    assert found["attr_timeout"].keys() == members("secs nanos")


SECRET = "dXNlcjpwYXNz"
KEYS = {"access_key_id": SECRET, "access_key_secret": SECRET}
MIRROR = {"host": "http://m", "headers": {"A": SECRET}}
HIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("registry", {"host": "h", "repo": "r", "auth": SECRET, "registry_token": SECRET}),
    ("registry", {"host": "h", "repo": "r", "proxy": {"url": f"http://u:{SECRET}@p:1"}}),
    ("oss", {"endpoint": "e", "bucket_name": "b", **KEYS}),
    ("s3", {"region": "r", "bucket_name": "b", "session_token": SECRET, **KEYS}),
    ("http-proxy", {"addr": "http://h", "mirrors": [MIRROR]}),
]


@pytest.mark.parametrize(("kind", "options"), HIDDEN)
def test_a_configuration_is_shown_without_secrets(kind: str, options: dict[str, Any]) -> None:
    text = json.dumps({"version": 2, "backend": {"type": kind, kind: options}})
    shown = as_version_2(parse(text, "file"))
    assert SECRET not in json.dumps(shown)
    entry = documents.backend_entry("/one", 0, shown)
    assert entry.keys() == members("backend_type mountpoint mounted_time config")
    assert entry["config"] == shown
    assert documents.backend_entry("/one", 0, None)["config"] is None


def test_a_configuration_is_shown_whole() -> None:
    options = {"host": "h", "repo": "r", "timeout": 9, "proxy": {"fallback": False}}
    old = {
        "device": {
            "id": "/one", "backend": {"type": "registry", "config": options},
            "cache": {"type": "blobcache", "config": {"work_dir": "/w"}},
        },
        "mode": "direct", "enable_xattr": True,
        "fs_prefetch": {"enable": True, "threads_count": 2, "prefetch_all": True},
    }  # fmt: skip
    shown = as_version_2(parse(json.dumps(old), "file"))
    assert shown.keys() == members("version id backend external_backends cache rafs overlay")
    backend = shown["backend"]
    assert {name for name, value in backend.items() if value is None} == members(
        "localdisk localfs oss s3 http-proxy"
    )
    assert backend["registry"]["timeout"] == 9
    assert backend["registry"]["auth"] is None
    assert backend["registry"]["proxy"]["fallback"] is False
    assert backend["registry"]["proxy"]["check_interval"] == 5
    assert shown["cache"]["type"] == "filecache"
    assert shown["cache"]["filecache"]["work_dir"] == "/w"
    assert shown["cache"]["fscache"] is None
    assert shown["rafs"]["enable_xattr"] is True
    assert shown["rafs"]["batch_size"] == 1 << 20
    assert shown["cache"]["prefetch"] == shown["rafs"]["prefetch"] == {
        "enable": True, "threads": 2, "batch_size": 1 << 20, "bandwidth_limit": 0,
        "prefetch_all": True, "stream_prefetch": False,
    }  # fmt: skip


def test_a_blob_entry_is_shown_as_fscache() -> None:
    document = {
        "type": "bootstrap", "id": "f",
        "config_v2": {
            "version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/b"}},
            "cache": {"type": "fscache", "fscache": {"work_dir": "/w"}},
        },
    }  # fmt: skip
    shown = as_version_2(blob_entry(document, "body").config)
    assert shown["cache"]["fscache"] == {"work_dir": "/w"}
    assert shown["backend"]["localfs"] == {"blob_file": "", "dir": "/b", "alt_dirs": []}
    assert "scheme" not in shown["backend"]["localfs"]
    assert as_version_2(parse(json.dumps(shown), "shown")) == shown
