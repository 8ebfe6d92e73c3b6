"""What is read out of nydusd's configurations, old and new."""

from __future__ import annotations

import json

import pytest

from nydus_fscache.config.nydusd import parse
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
