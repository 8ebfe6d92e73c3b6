"""The tree of names that containers/storage looks into (its "additional layer store").

    <base64 of REF>/<digest>/diff     link to the layer's tree: no byte of it passes through here
                            /info     JSON of the layer
                            /blob     the layer as the registry has it
                            /use      making it counts a use (and fails with ENOENT)
    rmdir <digest>                    counts a release (and fails with ENOENT)

REF is the normalised name of an image; ``:ref`` in the configuration puts it into the path.  The
digest is a layer's, or, from Podman 5.1 on, of its table of contents.  A node's number is a
digest of its path, so that a successor gives the same ones.

Every command of an engine looks at the root first, and fails when it cannot.  So the kernel keeps
the root's attributes for good and answers by itself, even when nobody holds the connection any
more: then Nydus images fail, and all others go on.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import logging
import os
import stat
import threading

from nydus_fscache.errors import FscacheError
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.runtimes.store import wire
from nydus_fscache.runtimes.store.catalogue import Catalogue, Image, Layer
from nydus_fscache.runtimes.store.uses import Use, Uses
from nydus_fscache.runtimes.store.views import Viewer, Views, viewer_of
from nydus_fscache.runtimes.store.wire import Attr, Op, Request
from rafs_v6.values import dataclass

log = logging.getLogger("store")

DIFF, INFO, BLOB, USE = "diff", "info", "blob", "use"
_DIRECTORY, _FILE, _LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o444, stat.S_IFLNK | 0o777
_CREATE_NUMBERS = 16  # bytes before the name: flags, mode, umask, open_flags

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A layer as one viewer sees it, by the digest that was asked for."""

    image: Image
    layer: Layer
    viewer: Viewer
    digest: str

    @property
    def use(self) -> Use:
        return Use(self.viewer.name, self.image.name, self.digest, self.image.anonymous)


class Names:
    """Answers requests; thread-safe."""

    def __init__(self, catalogue: Catalogue, views: Views, uses: Uses) -> None:
        self._catalogue, self._views, self._uses = catalogue, views, uses
        self._lock = threading.Lock()
        self._paths: dict[int, Path] = {wire.ROOT: ()}
        self._lookups: dict[int, int] = {}

    def handle(self, request: Request) -> bytes:
        """The body of the answer; ``OSError`` is one too."""
        match request.op:
            case Op.INIT:
                return self._init(request)
            case Op.LOOKUP:
                return self._lookup(request)
            case Op.GETATTR:
                path = self._path(request.node)
                return wire.attributes(self._attr(path, request), 0 if path else wire.FOREVER_S)
            case Op.READLINK:
                return self._readlink(request)
            case Op.OPEN | Op.OPENDIR:
                return wire.opened(wire.DIRECT_IO if request.op == Op.OPEN else 0)
            case Op.READ:
                return self._read(request)
            case Op.READDIR:
                return self._readdir(request)
            case Op.CREATE:
                return self._create(request)
            case Op.RMDIR:
                return self._rmdir(request)
            case Op.MKDIR:
                raise OSError(errno.EROFS, "")
            case Op.STATFS:
                return wire.statfs()
            case Op.FORGET | Op.BATCH_FORGET:
                self._forget(request)
                return b""
            case Op.RELEASE | Op.RELEASEDIR | Op.FLUSH | Op.DESTROY:
                return b""
            case _:
                raise OSError(errno.ENOSYS, "")

    @staticmethod
    def _init(request: Request) -> bytes:
        try:
            return wire.init(request.body)
        except ValueError as e:
            log.error("%s", e)
            raise OSError(errno.EPROTO, "") from e

    # -- nodes

    def _path(self, node: int) -> Path:
        with self._lock:
            path = self._paths.get(node)
        if path is None:  # of a predecessor: the kernel looks it up again
            raise OSError(errno.ESTALE, "")
        return path

    def _lookup(self, request: Request) -> bytes:
        path = (*self._path(request.node), request.name())
        attr = self._attr(path, request)
        with self._lock:
            self._paths[attr.node] = path
            self._lookups[attr.node] = self._lookups.get(attr.node, 0) + 1
        return wire.entry(attr)

    def _forget(self, request: Request) -> None:
        with self._lock:
            for node, lookups in request.forgotten():
                left = self._lookups.get(node, 0) - lookups
                if left > 0:
                    self._lookups[node] = left
                elif node != wire.ROOT:
                    self._lookups.pop(node, None)
                    self._paths.pop(node, None)

    def _attr(self, path: Path, request: Request) -> Attr:
        """ENOENT for names that mean nothing."""
        node = _number(path)
        match path:
            case ():
                return Attr(wire.ROOT, _DIRECTORY)
            case (coded,):
                _reference(coded)
                return Attr(node, _DIRECTORY)
            case (_, _):
                self._find(path, request)
                return Attr(node, _DIRECTORY)
            case (_, _, name) if name == DIFF:
                return Attr(node, _LINK, 1)
            case (_, _, name) if name == INFO:
                return Attr(node, _FILE, len(self._info(self._find(path, request))))
            case (_, _, name) if name == BLOB:
                return Attr(node, _FILE, self._find(path, request).layer.size)
        raise OSError(errno.ENOENT, "")

    def _find(self, path: Path, request: Request) -> Found:
        """What the first two names of a path stand for."""
        name, digest = _reference(path[0]), path[1]
        viewer = viewer_of(request.uid, request.pid)
        anonymous = not viewer.is_root
        image = self._uses.find(name, digest, anonymous=anonymous)
        image = image or self._catalogue.find(name, digest, anonymous=anonymous)
        layer = image.layer(digest) if image else None
        if image is None or layer is None:
            raise OSError(errno.ENOENT, "")
        return Found(image, layer, viewer, digest)

    # -- contents

    def _readlink(self, request: Request) -> bytes:
        path = self._path(request.node)
        if path[2:] != (DIFF,):
            raise OSError(errno.EINVAL, "")
        found = self._find(path, request)
        if not found.layer.is_tree:
            return os.fsencode(self._views.empty(found.layer, found.viewer))
        try:
            return os.fsencode(self._views.tree(found.image, found.viewer))
        except FscacheError as e:
            log.error("%s: %s (%s)", found.image.name, e, e.hint)
            raise OSError(errno.EIO, "") from e

    def _read(self, request: Request) -> bytes:
        path = self._path(request.node)
        off, length = request.range()
        found = self._find(path, request)
        if path[2:] == (INFO,):
            return self._info(found)[off : off + length]
        try:
            return self._catalogue.blob(found.image, found.layer, off, length)
        except FscacheError as e:
            log.error("%s: %s (%s)", found.image.name, e, e.hint)
            raise OSError(errno.EIO, "") from e

    @staticmethod
    def _info(found: Found) -> bytes:
        return json.dumps(found.layer.info(found.digest)).encode()

    def _readdir(self, request: Request) -> bytes:
        path = self._path(request.node)
        names: list[tuple[str, int]] = [(".", _DIRECTORY), ("..", _DIRECTORY)]
        if len(path) == 2:
            names += [(DIFF, _LINK), (INFO, _FILE), (BLOB, _FILE)]
        entries = [(name, Attr(_number((*path, name)), mode)) for name, mode in names]
        return wire.directory(entries, *request.range())

    # -- counts

    def _create(self, request: Request) -> bytes:
        path = self._path(request.node)
        if len(path) == 2 and request.name(_CREATE_NUMBERS) == USE:
            found = self._find(path, request)
            self._uses.add(found.use, found.image, request.unique)
            raise OSError(errno.ENOENT, "")  # so it is agreed
        raise OSError(errno.EROFS, "")

    def _rmdir(self, request: Request) -> bytes:
        path = (*self._path(request.node), request.name())
        if len(path) != 2:
            raise OSError(errno.EROFS, "")
        found = self._find(path, request)
        if self._uses.release(found.use, found.image, request.unique):
            last = not self._uses.in_use(found.image)
            self._views.drop(found.image, found.viewer.name, last=last)
        raise OSError(errno.ENOENT, "")


def _number(path: Path) -> int:
    text = "/".join(path).encode("utf-8", "surrogateescape")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    return number | 2  # neither 0 nor the root


def _reference(coded: str) -> str:
    """The name that base64 stands for; ENOENT for anything else."""
    try:
        text = base64.b64decode(coded, validate=True).decode()
        ImageName.parse(text)
    except (binascii.Error, ValueError, FscacheError):
        raise OSError(errno.ENOENT, "") from None
    return text
