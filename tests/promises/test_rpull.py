"""``ctr-remote images rpull``: Debian's containerd pulls lazily without a Go client."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from containerd import Stack, running
from servers import AUTH, OCI_INDEX, PASSWORD, USER, Pusher, docker_registry, htpasswd_auth
from trees import assert_tree

BIN = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")


@pytest.fixture(scope="module")
def rig() -> Iterator[Stack]:
    with running() as made:
        yield made


def rpull(
    rig: Stack, *words: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [BIN / "ctr-remote", "-a", rig.containerd_socket, "images", "rpull", *words],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{done.stderr}\n{rig.logs()}"
    return done


def content(rig: Stack) -> list[str]:
    return rig.ctr("content", "ls", "-q").stdout.split()


def remove(rig: Stack, reference: str) -> None:
    rig.ctr("images", "rm", "--sync", reference)


def small_layer(name: str, text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))
    return gzip.compress(out.getvalue(), mtime=0)


def plain_image(push: Pusher, layers: list[bytes], *, diff_ids: list[str] | None = None) -> dict:
    """An ordinary manifest."""
    ids = diff_ids or [
        f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}" for layer in layers
    ]
    rootfs = {"type": "layers", "diff_ids": ids}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    gzipped = "application/vnd.oci.image.layer.v1.tar+gzip"
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": f"sha256:{push.blob(config)}", "size": len(config),
        },
        "layers": [
            {"mediaType": gzipped, "digest": f"sha256:{push.blob(data)}", "size": len(data)}
            for data in layers
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["layers-zstd", "layers-zran"])
def test_a_nydus_image_is_pulled_lazily_and_runs(rig: Stack, golden: Path, name: str) -> None:
    reference = rig.push(golden / "images" / name)
    said = rpull(rig, reference)
    assert said.stdout.split()[0] == reference
    assert len(content(rig)) == 3, "manifest, configuration and the layer of the bootstrap"
    argv = ("/usr/bin/python3.11", "-S", "-c", "import sys; print(sys.version_info[0])")
    assert rig.run_container(reference, "one", *argv).stdout == "3\n"
    points = [p for p in rig.mounts() if "erofs" in _filesystem(p)]
    assert len(points) == 1
    assert_tree(Path(points[0]), golden / "images" / name / "expected.jsonl")
    assert rpull(rig, reference).stdout == said.stdout, "once more is fast and changes nothing"
    labels = rig.ctr("content", "ls").stdout
    assert "containerd.io/gc.ref.snapshot.nydus" in labels
    remove(rig, reference)
    assert content(rig) == [], "the lease is gone, nothing holds the content"


def _filesystem(point: str) -> str:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next((line for line in lines if line.split()[4] == point), "")


def test_an_ordinary_image_is_unpacked(rig: Stack) -> None:
    with Pusher(rig.host, "plain") as push:
        first, second = small_layer("a", "one"), small_layer("b", "two")
        push.manifest("1", plain_image(push, [first, second]))
    reference = f"{rig.host}/plain:1"
    rpull(rig, "--label", "who=me", reference)
    assert "who=me" in rig.ctr("images", "ls").stdout
    assert len(content(rig)) == 4
    assert len(rig.ctr("snapshots", "--snapshotter", "nydus", "ls").stdout.splitlines()) == 3
    remove(rig, reference)


def test_the_nydus_manifest_of_an_index_is_taken(rig: Stack, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    rig.push(image)
    with Pusher(rig.host, image.name) as push:
        plain = plain_image(push, [small_layer("a", "one")])
        base = f"http://{rig.host}/v2/{image.name}/manifests"
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        nydus = push._session.get(f"{base}/latest", headers=accept).content
        platform = {"architecture": "amd64", "os": "linux"}
        kind = "application/vnd.oci.image.manifest.v1+json"
        entries = [
            {"mediaType": kind, "digest": push.manifest("plain", plain),
             "size": len(json.dumps(plain)), "platform": platform},
            {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(nydus).hexdigest()}",
             "size": len(nydus),
             "platform": {**platform, "os.features": ["nydus.remoteimage.v1"]}},
        ]  # fmt: skip
        push.manifest("both", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    reference = f"{rig.host}/{image.name}:both"
    said = rpull(rig, reference)
    assert said.stdout.split()[1] == entries[1]["digest"]
    argv = ("/usr/bin/python3.11", "-S", "-c", "print(1)")
    assert rig.run_container(reference, "both", *argv).stdout == "1\n"
    remove(rig, reference)


@contextlib.contextmanager
def private_registry(directory: Path) -> Iterator[tuple[str, str]]:
    """Host and reference of an image for which one has to be somebody."""
    directory.mkdir()
    with docker_registry(directory, htpasswd_auth(directory)) as host:
        with Pusher(host, "secret", {"Authorization": f"Basic {AUTH}"}) as push:
            push.manifest("1", plain_image(push, [small_layer("a", "secret")]))
        yield host, f"{host}/secret:1"


def test_credentials_by_option_and_from_docker(rig: Stack, tmp_path: Path) -> None:
    with private_registry(tmp_path / "r") as (host, reference):
        config = tmp_path / "docker"
        config.mkdir()
        nobody = rpull(rig, reference, check=False, DOCKER_CONFIG=str(config))
        assert nobody.returncode == 4
        assert PASSWORD not in nobody.stderr
        rpull(rig, "--user", f"{USER}:{PASSWORD}", reference, DOCKER_CONFIG=str(config))
        remove(rig, reference)
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (config / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        rpull(rig, reference, DOCKER_CONFIG=str(config))
        remove(rig, reference)


def test_hosts_toml_puts_a_mirror_before_a_registry_that_is_away(
    rig: Stack, tmp_path: Path
) -> None:
    with Pusher(rig.host, "team/app") as push:
        push.manifest("1", plain_image(push, [small_layer("a", "mirrored")]))
    folder = tmp_path / "127.0.0.1:9"
    folder.mkdir()
    (folder / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:9"\n[host."http://{rig.host}"]\n'
        'capabilities = ["pull", "resolve"]\n'
    )
    rpull(rig, "--hosts-dir", str(tmp_path), "127.0.0.1:9/team/app:1")
    remove(rig, "127.0.0.1:9/team/app:1")
    (folder / "hosts.toml").write_text(f'[host."http://{rig.host}"]\nrewrite = "x"\n')
    refused = rpull(rig, "--hosts-dir", str(tmp_path), "127.0.0.1:9/team/app:1", check=False)
    assert refused.returncode == 2
    assert "rewrite" in refused.stderr


def test_a_layer_that_is_not_its_diff_id_leaves_nothing(rig: Stack) -> None:
    with Pusher(rig.host, "wrong") as push:
        layer = small_layer("a", "one")
        push.manifest("1", plain_image(push, [layer], diff_ids=[f"sha256:{'0' * 64}"]))
    failed = rpull(rig, f"{rig.host}/wrong:1", check=False)
    assert failed.returncode == 3
    assert "unpacks to" in failed.stderr
    assert f"{rig.host}/wrong:1" not in rig.ctr("images", "ls", "-q").stdout.split()
    assert len(rig.ctr("snapshots", "--snapshotter", "nydus", "ls").stdout.splitlines()) == 1


def test_errors_name_the_next_step(rig: Stack) -> None:
    away = rpull(rig, f"{rig.host}/nothing/here:1", check=False)
    assert away.returncode == 4
    done = subprocess.run(
        [BIN / "ctr-remote", "-a", "/nonexistent.sock", "i", "rpull", "x.example/y:1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 9
    assert "/nonexistent.sock" in done.stderr
    assert "--address" in done.stderr
