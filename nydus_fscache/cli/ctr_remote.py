"""``ctr-remote images rpull``: pull lazily into containerd through a remote snapshotter.

Name and options are those of stargz-snapshotter's program; labels and the default snapshotter
are those of Nydus.  Debian's ``ctr images pull`` passes no labels, so it cannot pull lazily.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import nydus_fscache
from nydus_fscache.cli.frame import guarded
from nydus_fscache.cli.fscache.common import path
from nydus_fscache.errors import UsageError

if TYPE_CHECKING:
    from nydus_fscache.runtimes.containerd.origin import Access

PROG = "ctr-remote"
_ADDRESS = "/run/containerd/containerd.sock"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog=PROG, description="Pull images lazily into containerd.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  ctr-remote images rpull --plain-http registry.lan:5000/app:1-nydus\n",
    )  # fmt: skip
    top.add_argument("--version", "-v", action="version",
                     version=f"{PROG} {nydus_fscache.__version__}")  # fmt: skip
    top.add_argument("--address", "-a", metavar="SOCKET",
                     default=os.environ.get("CONTAINERD_ADDRESS") or _ADDRESS,
                     help=f"containerd's ($CONTAINERD_ADDRESS, else {_ADDRESS})")  # fmt: skip
    top.add_argument("--namespace", "-n", metavar="NAME",
                     default=os.environ.get("CONTAINERD_NAMESPACE") or "default",
                     help="containerd's ($CONTAINERD_NAMESPACE, else default)")  # fmt: skip
    top.add_argument("--timeout", metavar="TIME", type=_duration_s, default=0.0,
                     help="for one call to containerd, such as 30s (default: none)")  # fmt: skip
    top.add_argument("--connect-timeout", metavar="TIME", type=_duration_s, default=0.0,
                     help="for a connection to the registry (default: 30s)")  # fmt: skip
    top.add_argument("--debug", action="store_true", help="say more on standard error")
    groups = top.add_subparsers(metavar="COMMAND", required=True)
    images = groups.add_parser("images", aliases=["image", "i"], help="manage images")
    commands = images.add_subparsers(metavar="COMMAND", required=True)
    _rpull(commands.add_parser(
        "rpull", help="pull an image through a remote snapshotter",
        description="Pull an image: manifest, configuration, and the layers that the snapshotter "
        "cannot load lazily; of a Nydus image, its bootstrap.",
    ))  # fmt: skip
    return top


def _rpull(to: argparse.ArgumentParser) -> None:
    to.add_argument("reference", metavar="REF", help="such as docker.io/library/app:1")
    to.add_argument("--snapshotter", metavar="NAME",
                    default=os.environ.get("CONTAINERD_SNAPSHOTTER") or "nydus",
                    help="who unpacks ($CONTAINERD_SNAPSHOTTER, else nydus)")  # fmt: skip
    to.add_argument("--use-containerd-labels", action="store_true",
                    help="pass the labels of the CRI: always done")  # fmt: skip
    to.add_argument("--skip-verify", "-k", action="store_true",
                    help="do not verify the registry's certificate")  # fmt: skip
    to.add_argument("--plain-http", action="store_true",
                    help="http (of a registry on this machine it is found out)")  # fmt: skip
    to.add_argument("--user", "-u", metavar="USER[:PASSWORD]", default="",
                    help="for the registry (default: docker's config.json)")  # fmt: skip
    to.add_argument("--hosts-dir", metavar="DIR", type=path,
                    help="of hosts.toml files, as containerd's config_path")  # fmt: skip
    to.add_argument("--tlscacert", metavar="FILE", type=path, help="authority of the registry")
    to.add_argument("--tlscert", metavar="FILE", type=path, help="our certificate")
    to.add_argument("--tlskey", metavar="FILE", type=path, help="its key")
    to.add_argument("--label", metavar="KEY=VALUE", action="append", default=[], type=_label,
                    help="of the image; may be repeated")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(PROG, _run, argv)


def _run(words: list[str]) -> int:
    args = parser().parse_args(words)
    logging.basicConfig(
        format=f"{PROG}: %(message)s", level=logging.INFO if args.debug else logging.WARNING
    )
    from nydus_fscache.registry.image_name import ImageName  # noqa: PLC0415 - start-up time
    from nydus_fscache.registry.manifest import own_architecture  # noqa: PLC0415
    from nydus_fscache.runtimes.containerd.origin import open_origin  # noqa: PLC0415
    from nydus_fscache.runtimes.containerd.pull import pull  # noqa: PLC0415
    from nydus_fscache.runtimes.containerd.services import Containerd  # noqa: PLC0415

    with Containerd(args.address, args.namespace, args.timeout or None) as containerd:
        origin = open_origin(ImageName.parse(args.reference), _access(args))
        try:
            done = pull(containerd, origin, args.snapshotter, own_architecture(), dict(args.label))
        finally:
            origin.close()
    print(origin.name, done.target.digest)
    return 0


def _access(args: argparse.Namespace) -> Access:
    from nydus_fscache.config.http_options import Tls  # noqa: PLC0415 - start-up time
    from nydus_fscache.runtimes.containerd.origin import Access  # noqa: PLC0415

    tls = Tls(
        skip_verify=args.skip_verify,
        ca_cert_files=(str(args.tlscacert),) if args.tlscacert else (),
        client_cert_file=str(args.tlscert or ""),
        client_key_file=str(args.tlskey or ""),
    )
    access = Access(args.hosts_dir, tls, args.plain_http, _login(args.user))
    return replace(access, connect_s=args.connect_timeout) if args.connect_timeout else access


def _login(text: str) -> str:
    from nydus_fscache.registry.auth import basic  # noqa: PLC0415 - start-up time

    if not text:
        return ""
    user, colon, password = text.partition(":")
    if not colon:
        if not sys.stdin.isatty():
            raise UsageError("--user without a password", hint="--user USER:PASSWORD")
        password = getpass.getpass(f"Password of {user}: ")
    return basic(user, password)


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _duration_s(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: such as 30s")
    return float(found[1]) * _UNITS[found[2] or "s"]


if __name__ == "__main__":
    sys.exit(main())
