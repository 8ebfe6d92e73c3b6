"""What ``/metrics`` says, in Prometheus' text format.  Names and labels stay; new ones may come.

Counters begin anew with each service process, but for the number of its starts.  No label holds
anything that grows without end: mounts are labels, blobs are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from nydus_fscache.api.server import Text
from nydus_fscache.core.events import WAIT_BOUNDS_S, Stats
from nydus_fscache.fetch.job import Counters
from nydus_fscache.fetch.read_times import TIMES_MS
from rafs_v6.values import dataclass

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX = "nydus_fscache_"


@dataclass(frozen=True, slots=True)
class MountSample:
    """``size``, ``present``: flat bytes of its blobs, which other mounts may share."""

    mountpoint: str
    image: str
    transport: str
    backend: str
    state: str
    size: int
    present: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``starts``: of services by this keeper and those before it; ``waiting``: images that are not
    served yet after a start; ``prefetch_left``: stored bytes that runs have still to load."""

    version: str
    starts: int
    started_at: float
    stats: Stats
    mounts: Sequence[MountSample]
    waiting: int
    totals: Mapping[str, Counters]
    cached_bytes: int
    cache_limit: int
    prefetch_left: int
    upgrade_failed: bool


def metrics_text(snapshot: Snapshot) -> Text:
    # imported by the first scrape: most daemons have none, and it takes 40 ms
    from prometheus_client import CollectorRegistry  # noqa: PLC0415
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    return Text(CONTENT_TYPE_LATEST, generate_latest(registry))


class _Collector:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from self._service()
        yield from self._requests()
        yield from self._backends()
        yield from self._mounts()
        yield from self._cache()

    def _service(self) -> Iterator[Metric]:
        s = self._snapshot
        info = _gauge("build_info", "The version that runs; always 1", ["version"])
        info.add_metric([s.version], 1)
        yield info
        yield _one(_gauge("start_time_seconds", "Start of the service, since 1970"), s.started_at)
        restarts = _counter("restarts", "Services after the first: crashes and upgrades")
        yield _one(restarts, max(0, s.starts - 1))
        failed = _gauge("upgrade_failed", "Was the last upgrade given up for the old version?")
        yield _one(failed, s.upgrade_failed)

    def _requests(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415

        stats = self._snapshot.stats
        for name, help_, value in (
            ("requests", "Requests of the kernel", stats.events),
            ("hits", "Requests answered at once, as data were there", stats.hits),
            ("misses", "Requests that had to wait for data", stats.misses),
            ("failed_requests", "Requests answered with an error (EIO, ENOSPC)", stats.denied),
        ):
            yield _one(_counter(name, help_), value)
        yield _one(_gauge("waiting_requests", "Requests that wait now"), stats.pending)
        oldest = _gauge("oldest_request_seconds", "Age of the oldest request that waits, or 0")
        yield _one(oldest, stats.oldest_ns / 1e9)
        waits = HistogramMetricFamily(
            f"{PREFIX}miss_seconds", "From a request that missed to its answer"
        )
        waits.add_metric([], _buckets(WAIT_BOUNDS_S, stats.waits), stats.waits_ns / 1e9)
        yield waits

    def _backends(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415

        label = ["backend"]
        requests = _counter("backend_requests", "Requests to backends", label)
        fetched = _counter("backend_bytes", "Bytes from backends, compressed", label)
        prefetched = _counter("prefetched_bytes", "Of these, those that prefetch loaded", label)
        errors = _counter("backend_errors", "Data that could not be had, or were wrong", label)
        reused = _counter("reused_bytes", "Bytes copied from other cached blobs instead", label)
        recovered = _counter("recovered_bytes", "Bytes verified in cache files instead", label)
        times = HistogramMetricFamily(
            f"{PREFIX}backend_read_seconds", "From a request to its last byte", labels=label
        )
        for kind, total in sorted(self._snapshot.totals.items()):
            counts, seconds, prefetch = total.times.by_time()
            requests.add_metric([kind], total.requests)
            fetched.add_metric([kind], total.fetched)
            prefetched.add_metric([kind], prefetch)
            errors.add_metric([kind], total.errors)
            reused.add_metric([kind], total.reused)
            recovered.add_metric([kind], total.recovered)
            times.add_metric([kind], _buckets([ms / 1000 for ms in TIMES_MS], counts), seconds)
        yield from (requests, fetched, prefetched, errors, reused, recovered, times)

    def _mounts(self) -> Iterator[Metric]:
        labels = ["mountpoint", "image", "transport", "backend", "state"]
        info = _gauge("mount_info", "An image that is served; always 1", labels)
        size = _gauge("mount_bytes", "Bytes of its blobs, uncompressed", ["mountpoint", "image"])
        present = _gauge("mount_present_bytes", "Of these, those here", ["mountpoint", "image"])
        for m in self._snapshot.mounts:
            place = [_text(m.mountpoint), _text(m.image)]
            info.add_metric([*place, m.transport, m.backend, m.state], 1)
            size.add_metric(place, m.size)
            present.add_metric(place, m.present)
        yield from (info, size, present)
        waiting = _gauge("unserved_images", "Images that a start could not serve again yet")
        yield _one(waiting, self._snapshot.waiting)

    def _cache(self) -> Iterator[Metric]:
        s = self._snapshot
        yield _one(_gauge("cache_bytes", "Cached blobs on disk"), s.cached_bytes)
        yield _one(_gauge("cache_limit_bytes", "The limit of the cache; 0: none"), s.cache_limit)
        left = _gauge("prefetch_left_bytes", "Compressed bytes that prefetch has still to load")
        yield _one(left, s.prefetch_left)


def _gauge(name: str, help_: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

    return GaugeMetricFamily(PREFIX + name, help_, labels=labels)


def _counter(name: str, help_: str, labels: Sequence[str] = ()) -> CounterMetricFamily:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415

    return CounterMetricFamily(PREFIX + name, help_, labels=labels)


def _one(family: GaugeMetricFamily | CounterMetricFamily, value: float) -> Metric:
    family.add_metric([], value)
    return family


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative, by upper bound; ``counts`` has one more, without a bound."""
    names = [*map(repr, map(float, bounds)), "+Inf"]
    sums, total = [], 0
    for count in counts:
        total += count
        sums.append(float(total))
    return list(zip(names, sums, strict=True))


def _text(name: str) -> str:
    """Names of files are bytes; the format is UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
