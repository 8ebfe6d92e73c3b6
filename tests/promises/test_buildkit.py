"""BuildKit builds and pushes a Nydus image with our ``nydus-image`` in its PATH: it runs, and
``nydusify`` takes it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cold_image import BUSYBOX
from containerd import Stack, peer, running
from oci_kit import Nydusify, get

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")
START_S = 60.0
STATE = Path("/run/buildkit")  # where it puts a socket, whatever its options say
DOCKERFILE = """\
FROM scratch
COPY busybox /bin/busybox
COPY --chown=1:2 note /etc/note
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; echo built > /etc/built"]
RUN rm /etc/note && mkdir -p /data && head -c 300000 /dev/urandom > /data/random
"""


@contextlib.contextmanager
def buildkitd(base: Path, registry: str) -> Iterator[str]:
    """Its address."""
    daemon, address = peer("buildkitd"), f"unix://{base}/bk.sock"
    (base / "bk.toml").write_text(
        f'root = "{base}/bk"\n[worker.oci]\n  snapshotter = "native"\n[worker.containerd]\n'
        f'  enabled = false\n[registry."{registry}"]\n  http = true\n  insecure = true\n'
    )
    own = not STATE.exists()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["--config", base / "bk.toml", "--addr", address, "--oci-worker-net=host"]
    with (base / "buildkitd.log").open("wb") as log:
        process = subprocess.Popen(
            [daemon, *words], stdout=log, stderr=log, env={**os.environ, "PATH": path},
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_S
        while not (base / "bk.sock").exists():
            assert process.poll() is None, (base / "buildkitd.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if own:
            shutil.rmtree(STATE, ignore_errors=True)


def build(rig: Stack, address: str, context: Path, reference: str) -> None:
    options = (
        f"type=image,name={reference},push=true,registry.insecure=true,compression=nydus,"
        "force-compression=true,oci-mediatypes=true"
    )
    rig.run(
        str(peer("buildctl")), "--addr", address, "build", "--frontend", "dockerfile.v0",
        "--local", f"context={context}", "--local", f"dockerfile={context}", "--output", options,
    )  # fmt: skip


def test_an_image_that_buildkit_built_runs(tmp_path: Path) -> None:
    if not BUSYBOX.exists():
        pytest.skip("NO busybox-static: nothing is built with BuildKit")
    (tmp_path / "busybox").write_bytes(BUSYBOX.read_bytes())
    (tmp_path / "busybox").chmod(0o755)
    (tmp_path / "note").write_text("note\n")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    with running() as rig, buildkitd(rig.base, rig.host) as address:
        reference = f"{rig.host}/built:latest"
        build(rig, address, tmp_path, reference)
        rig.pull(reference)
        script = "cat /etc/built; ls /etc /data; wc -c < /data/random"
        said = rig.run_container(reference, "one", "/bin/sh", "-c", script)
        assert said.stdout.split() == ["built", "/data:", "random", "/etc:", "built", "300000"]
        assert any(rig.snapshotter_root / "mnt" in Path(m).parents for m in rig.mounts()), "plain"
        # a Nydus image as a base: its blobs are unpacked by our nydus-image
        (tmp_path / "Dockerfile").write_text(
            f'FROM {reference}\nRUN ["/bin/sh", "-c", "cat /etc/built > /etc/again"]\n'
        )
        following = f"{rig.host}/following:latest"
        build(rig, address, tmp_path, following)
        rig.pull(following)
        said = rig.run_container(following, "two", "/bin/sh", "-c", "cat /etc/again")
        assert said.stdout == "built\n"
        for name in (reference, following):
            rig.ctr("images", "rm", "--sync", name)
        nydusify = Nydusify(tmp_path)
        assert "verified image" in nydusify.run("check", "--target", following)
        nydusify_takes(nydusify, rig.host, "built")


def nydusify_takes(nydusify: Nydusify, host: str, repo: str) -> None:
    source, target = f"{host}/{repo}:latest", f"{host}/{repo}-2"
    nydusify.run("copy", "--source", source, "--target", f"{target}:copied")
    original = get(host, repo, "latest")
    assert get(host, f"{repo}-2", "copied").content == original.content
    nydusify.run("convert", "--source", source, "--target", f"{target}:same")  # it is Nydus
    assert get(host, f"{repo}-2", "same").json()["layers"] == original.json()["layers"]
    nydusify.run("check", "--source", source, "--target", f"{target}:same")
    nydusify.run("convert", "--reverse", "--source", source, "--target", f"{target}:oci")
    nydusify.run("check", "--source", f"{target}:oci", "--target", source)
    with nydusify.mounted(f"{target}:copied") as root:
        assert (root / "etc" / "built").read_bytes() == b"built\n"
        assert not (root / "etc" / "note").exists()
