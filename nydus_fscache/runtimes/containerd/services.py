"""containerd's services over gRPC, as far as a pull needs them (``api/services/*/v1/*.proto``).

Works with 1.6, 1.7 and 2.x, whose v1 services are the same.  Errors of containerd are
``DaemonError``, what is there already is ``AlreadyThere``, what is missing ``NotThere``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nydus_fscache.errors import DaemonError
from nydus_fscache.runtimes.containerd.wire import (
    Value,
    mapping,
    message,
    messages_of,
    number_of,
    parse,
    text_of,
    texts,
)
from rafs_v6.values import dataclass

if TYPE_CHECKING:
    import grpc

_STAT, _WRITE, _COMMIT = 0, 1, 2  # enum WriteAction


class AlreadyThere(DaemonError):
    """Content, an image or a snapshot of that name exists."""


class NotThere(DaemonError):
    """There is no such thing."""


@dataclass(frozen=True, slots=True)
class Target:
    """containerd's ``types.Descriptor``; ``digest`` is sha256:hex, ``size`` in bytes."""

    media_type: str
    digest: str
    size: int

    def encoded(self) -> bytes:
        return message((1, self.media_type), (2, self.digest), (3, self.size))


class Containerd:
    """One connection.  ``lease``: what is made under it is kept until it is deleted."""

    def __init__(self, address: str, namespace: str, timeout_s: float | None = None) -> None:
        import grpc  # noqa: PLC0415 - 0.2 s that other commands do not pay

        self._grpc = grpc
        self._address, self._timeout_s = address.removeprefix("unix://"), timeout_s
        self._metadata: tuple[tuple[str, str], ...] = (("containerd-namespace", namespace),)
        limit = ("grpc.max_receive_message_length", 16 << 20)
        # the environment's proxies are for registries
        options = (limit, ("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost"))
        self._channel = grpc.insecure_channel(f"unix:{self._address}", options=options)

    def __enter__(self) -> Containerd:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    # -- leases

    def lease(self, name: str, labels: Mapping[str, str]) -> None:
        self._call("leases.v1.Leases/Create", message((1, name), *mapping(3, labels)))
        self._metadata = (*self._metadata, ("containerd-lease", name))

    def end_lease(self, name: str) -> None:
        self._call("leases.v1.Leases/Delete", message((1, name)))

    # -- content

    def has_content(self, digest: str) -> bool:
        try:
            self._call("content.v1.Content/Info", message((1, digest)))
        except NotThere:
            return False
        return True

    def label_content(self, digest: str, labels: Mapping[str, str]) -> None:
        info = message((1, digest), *mapping(5, labels))
        mask = message(*texts(1, (f"labels.{key}" for key in sorted(labels))))
        self._call("content.v1.Content/Update", message((1, info), (2, mask)))

    def write(
        self, ref: str, target: Target, data: Iterable[bytes], labels: Mapping[str, str]
    ) -> None:
        """Store ``data`` under ``target.digest``, which containerd verifies.

        Content that is there already gets the labels, and is kept by the lease.
        """
        head: list[tuple[int, Value]] = [(2, ref), (3, target.size), (4, target.digest)]

        def requests() -> Iterator[bytes]:
            yield message((1, _STAT), *head)
            off = 0
            for piece in data:
                yield message((1, _WRITE), *head, (5, off), (6, piece))
                off += len(piece)
            yield message((1, _COMMIT), *head, (5, off), *mapping(7, labels))

        try:
            self._stream("content.v1.Content/Write", requests())
        except AlreadyThere:
            if labels:
                self.label_content(target.digest, labels)

    # -- images

    def put_image(self, name: str, target: Target, labels: Mapping[str, str]) -> None:
        """Make it, or let the name point to ``target`` from now on."""
        image = message((1, name), *mapping(2, labels), (3, target.encoded()))
        try:
            self._call("images.v1.Images/Create", message((1, image)))
        except AlreadyThere:
            paths = ["target", *(f"labels.{key}" for key in sorted(labels))]
            mask = message(*texts(1, paths))
            self._call("images.v1.Images/Update", message((1, image), (2, mask)))

    # -- snapshots

    def has_snapshot(self, snapshotter: str, key: str) -> bool:
        try:
            self._call("snapshots.v1.Snapshots/Stat", message((1, snapshotter), (2, key)))
        except NotThere:
            return False
        return True

    def prepare(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> list[bytes]:
        """The mounts, as ``apply`` takes them; ``AlreadyThere``: the snapshotter has the layer."""
        request = message((1, snapshotter), (2, key), (3, parent), *mapping(4, labels))
        return messages_of(parse(self._call("snapshots.v1.Snapshots/Prepare", request)), 1)

    def commit(self, snapshotter: str, name: str, key: str, labels: Mapping[str, str]) -> None:
        request = message((1, snapshotter), (2, name), (3, key), *mapping(4, labels))
        self._call("snapshots.v1.Snapshots/Commit", request)

    def remove_snapshot(self, snapshotter: str, key: str) -> None:
        self._call("snapshots.v1.Snapshots/Remove", message((1, snapshotter), (2, key)))

    def apply(self, target: Target, mounts: list[bytes]) -> str:
        """Unpack a layer; the digest of the tar that it was."""
        request = message((1, target.encoded()), *texts(2, mounts))
        applied = messages_of(parse(self._call("diff.v1.Diff/Apply", request)), 1)
        return text_of(parse(applied[-1]), 2) if applied else ""

    # -- calls

    def _call(self, method: str, request: bytes) -> bytes:
        call: Any = self._channel.unary_unary(f"/containerd.services.{method}")
        with self._translated(method):
            answer: bytes = call(request, metadata=self._metadata, timeout=self._timeout_s)
        return answer

    def _stream(self, method: str, requests: Iterator[bytes]) -> None:
        """``requests`` are drawn one by one: an error of theirs is the caller's, not gRPC's."""
        failed: list[Exception] = []

        def drawn() -> Iterator[bytes]:
            try:
                yield from requests
            except Exception as e:  # gRPC would swallow it
                failed.append(e)
                raise

        call: Any = self._channel.stream_stream(f"/containerd.services.{method}")
        try:
            with self._translated(method):
                for answer in call(drawn(), metadata=self._metadata):
                    number_of(parse(answer), 1)
        except DaemonError:
            if failed:
                raise failed[0] from None
            raise

    @contextlib.contextmanager
    def _translated(self, method: str) -> Iterator[None]:
        try:
            yield
        except self._grpc.RpcError as e:
            raise self._error(method, e) from None

    def _error(self, method: str, error: grpc.RpcError) -> DaemonError:
        code, text = error.code(), error.details() or ""
        codes = self._grpc.StatusCode
        if code == codes.ALREADY_EXISTS:
            return AlreadyThere(text)
        if code == codes.NOT_FOUND:
            return NotThere(text)
        if code == codes.UNAVAILABLE:
            return DaemonError(
                f"containerd does not answer at {self._address}: {text}",
                hint="is it running? --address names its socket",
            )
        name = method.partition("/")[2]
        return DaemonError(f"containerd, {name}: {text or code.name}", hint="see containerd's log")
