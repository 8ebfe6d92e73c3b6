"""Images served over cachefiles by fsid: the service of ``nydusd singleton --fscache``.

Guarantees: binding again what is bound already succeeds and renews its credentials; unbinding
by domain alone never fails; ``underlying_files`` lists every blob of every bound image.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from nydus_fscache.api.nydusd import documents
from nydus_fscache.api.nydusd.documents import Document, ErrorRing
from nydus_fscache.api.nydusd.server import Query, Refused
from nydus_fscache.api.nydusd.service import (
    Call,
    Engine,
    Routes,
    named,
    no_counter,
    object_of,
    patiently,
    told,
    unsupported,
)
from nydus_fscache.api.nydusd.turns import Turns
from nydus_fscache.errors import FscacheError, UsageError
from rafs_v6.values import dataclass

if TYPE_CHECKING:
    from nydus_fscache.config.nydusd import Config

# The snapshotter tolerates a failed unbind whose message has these words, and no other.
NOT_FOUND = "blob_cache: cache entry not found"
Key = tuple[str, str]
_log = logging.getLogger("nydusd")
_MOUNT_METHODS = ("POST", "PUT", "DELETE")


@dataclass(slots=True)
class Entry:
    """An image that is bound: ``document`` as it was sent (a BlobEntry)."""

    fsid: str
    domain: str
    document: Document


class BoundImages:
    """Thread-safe."""

    def __init__(self, engine: Engine, errors: ErrorRing) -> None:
        self._engine = engine
        self._errors = errors
        self._lock = threading.Lock()
        self._turns: Turns[Key] = Turns()  # a bind may wait for a backend that hangs
        self._entries: dict[Key, Entry] = {}

    # -- a service ---------------------------------------------------------------------------

    def routes(self) -> Routes:
        return {
            ("PUT", "/api/v2/blobs"): self._bind_call,
            ("DELETE", "/api/v2/blobs"): self._delete_call,
            ("GET", "/api/v2/blobs"): self._list_call,
            ("GET", "/api/v1/metrics"): _no_counter("GlobalMetrics"),
            ("GET", "/api/v1/metrics/files"): _no_counter("FsFilesMetrics"),
            ("GET", "/api/v1/metrics/pattern"): _no_counter("Pattern"),
            ("GET", "/api/v1/metrics/inflight"): _not_here("InflightMetrics"),
            ("GET", "/api/v1/daemon/backend"): _not_here("FsBackendInfo"),
            **{(method, "/api/v1/mount"): _not_here("Mount") for method in _MOUNT_METHODS},
            ("GET", "/api/v1/metrics/backend"): self._backend_metrics,
            ("GET", "/api/v1/metrics/blobcache"): self._blobcache_metrics,
        }

    def backends(self) -> Document | None:
        return None

    def configs(self, wanted: str) -> list[Document]:
        entries = self._all()
        if wanted not in ("", "/"):
            entries = [e for e in entries if _is_named(e, wanted)]
        return [_config_of(e.document).backend for e in entries]

    def saved(self) -> list[Document]:
        return [asdict(e) for e in self._all()]

    def restore(self, entries: list[Document]) -> None:
        for entry in entries:
            self.bind(Entry(**entry).document)

    def end(self) -> None:
        """Images that the kernel uses stay bound."""
        for entry in self._all():
            with contextlib.suppress(FscacheError):
                self._engine.unbind(entry.fsid, entry.domain)

    # -- calls -------------------------------------------------------------------------------

    def bind(self, document: Document) -> None:
        """Raises ``Refused``."""
        fsid, domain = document.get("id"), document.get("domain_id") or ""
        if document.get("type") != "bootstrap":
            raise _refused("CreateBlobObject", f"type {document.get('type')!r} is not bootstrap")
        for name in (fsid, domain):
            if not isinstance(name, str) or "/" in name:
                raise Refused(400, "BadRequest")
        if not fsid:
            raise Refused(400, "BadRequest")
        try:
            config = _config_of(document)
        except (FscacheError, TypeError, AttributeError) as e:
            raise Refused(400, f'ParseBody(Error("{told(e)}"))') from e
        entry = Entry(fsid, domain, document)
        with self._turns.of((fsid, domain)):
            try:
                patiently(f"bind {fsid}", partial(self._bind_once, entry, config), _log)
            except FscacheError as e:
                self._errors.add(f"bind {fsid}: {e}")
                raise _refused("CreateBlobObject", told(e)) from e
            with self._lock:
                self._entries[fsid, domain] = entry

    def _bind_once(self, entry: Entry, config: Config) -> None:
        if self._is_bound(entry):
            self._renew(config)
            return
        bootstrap = config.metadata_path
        self._engine.bind(
            {
                "bootstrap": bootstrap, **config.request(), "transport": "cachefiles",
                "fsid": entry.fsid, "domain": entry.domain, "source": bootstrap,
            }
        )  # fmt: skip

    def _is_bound(self, entry: Entry) -> bool:
        """By us, or by an earlier front, of the same bootstrap."""
        source = _config_of(entry.document).metadata_path
        return any(
            (m["fsid"], m["domain"], m["image"]) == (entry.fsid, entry.domain, source)
            for m in self._engine.status()["mounts"]
        )

    def _renew(self, config: Config) -> None:
        registry = config.backend.get("registry") or {}
        if registry.get("auth"):
            with contextlib.suppress(FscacheError):
                self._engine.login({"host": registry.get("host"), "auth": registry["auth"]})

    def _bind_call(self, _: Query, body: bytes | None) -> None:
        self.bind(object_of(body))

    def _delete_call(self, query: Query, _: bytes | None) -> None:
        domain, fsid = query.get("domain_id"), query.get("blob_id")
        if domain is not None:
            self._unbind(domain, fsid)
        elif fsid:
            try:
                self._engine.drop(fsid)
            except FscacheError as e:
                raise _refused("DeleteBlobFile", told(e)) from e
        else:
            raise Refused(400, "BadRequest")

    def _unbind(self, domain: str, fsid: str | None) -> None:
        with self._lock:
            known = {*self._entries, *self._turns.names()}
        wanted = [
            key for key in known
            if domain in (key[1], key[1] or key[0]) and fsid in (None, key[0])
        ]  # fmt: skip
        found = [key for key in wanted if self._unbind_one(key, may_fail=fsid is not None)]
        if not found and fsid is not None:
            raise _refused("DeleteBlobObject", NOT_FOUND)

    def _unbind_one(self, key: Key, *, may_fail: bool) -> bool:
        """False when it is not bound.  ``may_fail``: of a whole domain it never does."""
        with self._turns.of(key):
            with self._lock:
                entry = self._entries.get(key)
            if entry is None:
                return False
            try:
                call = partial(self._engine.unbind, entry.fsid, entry.domain)
                patiently(f"unbind {entry.fsid}", call, _log)
            except UsageError:
                pass  # the node's daemon has given it up already
            except FscacheError as e:
                self._errors.add(f"unbind {entry.fsid}: {e}")
                if may_fail:
                    raise _refused("DeleteBlobObject", told(e)) from e
            with self._lock:
                del self._entries[key]
        return True

    def _list_call(self, query: Query, _: bytes | None) -> list[Document]:
        domain, fsid = named(query, "domain_id"), query.get("blob_id")
        return [
            {"type": "bootstrap", "id": e.fsid, "domain_id": e.domain} for e in self._all()
            if e.domain == domain and fsid in (None, e.fsid)
        ]  # fmt: skip

    # -- what is known of images -------------------------------------------------------------

    def _found(self, query: Query, call: str) -> tuple[Document, list[Entry]]:
        wanted = query.get("id")
        entries = self._all()
        if wanted is not None and wanted != "/":
            entries = [e for e in entries if _is_named(e, wanted)]
        if not entries or (wanted is None and len(entries) > 1):
            raise no_counter(call)
        return self._engine.status(), entries

    def _blobs(self, status: Document, entries: list[Entry]) -> list[Document]:
        names = {(e.fsid, e.domain) for e in entries}
        ours = [m for m in status["mounts"] if (m["fsid"], m["domain"]) in names]
        return documents.blobs_of(status, ours)

    def _backend_metrics(self, query: Query, _: Any) -> Document:
        status, entries = self._found(query, "BackendMetrics")
        kind = str(_config_of(entries[0].document).backend.get("type"))
        return documents.backend_metrics(kind, self._blobs(status, entries))

    def _blobcache_metrics(self, query: Query, _: Any) -> Document:
        status, entries = self._found(query, "BlobcacheMetrics")
        store = f"{status['root']}/cachefiles"
        return documents.blobcache_metrics(store, self._blobs(status, entries))

    def _all(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())


def _config_of(document: Document) -> Config:
    """From ``config_v2``, or the older ``config``.  Raises ``FscacheError``."""
    from nydus_fscache.config import nydusd as configuration  # noqa: PLC0415 - half a MiB

    return configuration.blob_entry(document, "the request").config


def _no_counter(call: str) -> Call:
    def answer(*_: Any) -> None:
        raise no_counter(call)

    return answer


def _not_here(call: str) -> Call:
    """A call of the other modes."""

    def answer(*_: Any) -> None:
        raise unsupported(call)

    return answer


def _is_named(entry: Entry, wanted: str) -> bool:
    """``/fsid``, ``fsid``, or ``/SNAPSHOT``, whose fsid the snapshotter derives from its id."""
    name = wanted.removeprefix("/")
    return entry.fsid in (name, documents.fsid_of_snapshot(name))


def _refused(call: str, text: str) -> Refused:
    return Refused(500, f'{call}(DaemonAbnormal(Other("{text}")))')
