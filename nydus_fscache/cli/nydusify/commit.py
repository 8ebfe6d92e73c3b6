"""``nydusify commit``: what a container changed becomes an image."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

from nydus_fscache.cli.nydusify import common
from nydus_fscache.cli.nydusify.options import Arguments, Option
from nydus_fscache.cli.nydusify.progress import Board
from nydus_fscache.convert.builder import Builder
from nydus_fscache.convert.commit import Changes, Commit
from nydus_fscache.convert.containers import Container, Containers, tree_at
from nydus_fscache.convert.move import Attempts, Mover
from nydus_fscache.convert.platforms import host
from nydus_fscache.convert.trace import image_of
from nydus_fscache.convert.upper import layer_of
from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.errors import UsageError
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.image_name import ImageName

log = logging.getLogger("nydusify")

HELP = "Create and push an image of a container's changes"
EXAMPLES = """\
   nydusify commit --container 5f3a --target registry.example/app:2-nydus
   nydusify commit --container 5f3a --target reg.example/app:2 --with-path /data,!/tmp
   nydusify commit --source reg.example/app:1 --upper-dir /var/upper --target reg.example/app:2
"""
OPTIONS = (
    Option("container", "its id in containerd, or the beginning of it", value="ID"),
    Option("target", "the name of the result", required=True, value="REF"),
    Option("source", "without containerd: the Nydus image below --upper-dir", value="REF"),
    Option("upper-dir", "without containerd: the upper directory of an overlay", value="DIR"),
    Option("containerd-address", "containerd's socket", "/run/containerd/containerd.sock",
           env=("CONTAINERD_ADDR",), value="SOCKET"),
    Option("namespace", "of containerd", "default", ("n",)),
    Option("maximum-times", "commits over one converted image", "400", value="N"),
    Option("with-path", "a mounted directory that is taken along; !PATH leaves a path out",
           aliases=("with-mount-path",), many=True, value="PATHS"),
    common.insecure("source"), common.insecure("target"), common.PLAIN_HTTP, common.LOGIN,
    common.work_dir("./tmp"), common.NYDUS_IMAGE,
)  # fmt: skip


def run(args: Arguments, stop: threading.Event) -> None:
    target = ImageName.parse(args.text("target"))
    paths = args.texts("with-path")
    excluded = [path[1:] for path in paths if path.startswith("!")]
    included = [path for path in paths if not path.startswith("!")]
    container, paused = _container(args)
    image, upper, pid = container.image, container.upper, container.pid
    if included and not pid:
        raise UsageError("--with-path needs a running container", hint="!PATH does not")
    source = ImageName.parse(image)
    if not upper.is_dir():
        raise UsageError(f"{upper} is not a directory", hint="the upper one of an overlay")
    with ExitStack() as stack:
        work = stack.enter_context(WorkDir(Path(args.text("work-dir")))).path
        registries = stack.enter_context(Registries())
        board = stack.enter_context(Board())
        store = registries.open(source, common.trust_of(args, "source", source, target))
        images = registries.open(target, common.trust_of(args, "target", target, target, source))
        document = image_of(store, source.reference.manifest, host().architecture)
        commit = Commit(
            store, images, Builder(args.text("nydus-image"), b"", stop),
            Mover(store, images, work, stop, board, Attempts()), work, paused,
            args.number("maximum-times"),
        )  # fmt: skip
        changes = [Changes("the upper directory", lambda: layer_of(upper, [*excluded, *included]))]
        changes += [Changes(path, partial(tree_at, pid, path, work)) for path in included]
        made = commit.run(document, str(source), changes)
        images.put_manifest(target.reference.tag or made.digest, made)
        log.info("pushed image %s, %s", target, made.digest)


def _container(args: Arguments) -> tuple[Container, Callable[[], AbstractContextManager[object]]]:
    upper, name = args.text("upper-dir"), args.text("container")
    if bool(upper) == bool(name) or (upper and not args.text("source")):
        raise UsageError("either --container, or --source and --upper-dir", hint="see --help")
    if upper:
        return Container("", args.text("source"), Path(upper), 0), nullcontext
    containers = Containers(args.text("containerd-address"), args.text("namespace"))
    found = containers.find(name)
    return found, lambda: containers.paused(found)
