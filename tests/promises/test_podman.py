"""Debian's Podman runs Nydus images out of our layer store, as root and rootless.

What a container reads comes from the kernel's EROFS mount; the store may die whenever it likes.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from podman import BIN, PYTHON, Podman, new_base, plain_image, podman, push, uses
from servers import (
    AUTH,
    PASSWORD,
    USER,
    Pusher,
    bootstrap_layer,
    docker_registry,
    htpasswd_auth,
    nydus_manifest,
)
from trees import assert_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")

ROOTLESS = "games"  # any account that is on every Debian


@pytest.fixture
def rig() -> Iterator[Podman]:
    with podman(new_base()) as made:
        yield made


@pytest.fixture
def image(rig: Podman, golden: Path) -> str:
    return push(rig, golden / "images" / "layers-zstd")


def fetched(rig: Podman) -> int:
    done = subprocess.run(
        [BIN / "nydus-fscache", "status", "--json", "--root", rig.root],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sum(blob["fetched"] for blob in json.loads(done.stdout)["blobs"])


def test_pull_run_write_remove(rig: Podman, image: str, golden: Path) -> None:
    rig.start_store()
    pulled = rig.podman("pull", image)
    assert "GC doesn't seem to be supported" not in pulled.stderr
    blobs = sum(blob.stat().st_size for blob in (golden / "images/layers-zstd/blobs").iterdir())
    stored = sum(f.stat().st_size for f in (rig.home / "graph").rglob("*") if f.is_file())
    assert stored < blobs / 2, "only manifest, configuration and bootstrap were downloaded"
    said = rig.podman("run", "--rm", image, *PYTHON, "import sys; print(sys.version_info[0])")
    assert said.stdout == "3\n"
    assert 0 < fetched(rig) < blobs
    (mounted,) = rig.erofs()
    assert_tree(mounted, golden / "images" / "layers-zstd" / "expected.jsonl")
    script = (
        "import os; os.remove('/etc/passwd'); open('/new', 'w').write('n'); "
        "open('/etc/group', 'a').write('x'); print(os.path.exists('/etc/passwd'))"
    )
    assert rig.podman("run", "--name", "writer", image, *PYTHON, script).stdout == "False\n"
    rig.podman("rm", "writer")
    assert rig.podman("run", "--rm", image, *PYTHON, "open('/etc/passwd')").returncode == 0
    rig.podman("rmi", image)
    assert uses(rig) == 0
    assert rig.erofs() == []
    assert [p for p in (rig.store / "mnt").rglob("*") if p.parent.name == "host"] == []
    assert rig.stop_store() == 0


@pytest.mark.long
def test_pull_by_digest_and_an_ordinary_image_beside(rig: Podman, golden: Path) -> None:
    reference = push(rig, golden / "images" / "layers-zran")
    plain = plain_image(rig.host, "plain")
    rig.start_store()
    rig.podman("pull", plain)
    assert rig.podman("run", "--rm", plain, "/bin/busybox", "echo", "a").stdout == "a\n"
    rig.podman("pull", reference)
    digest = rig.podman("inspect", "--format", "{{.Digest}}", reference).stdout.strip()
    rig.podman("rmi", reference)
    by_digest = f"{reference.rpartition(':')[0]}@{digest}"
    rig.podman("pull", by_digest)
    assert rig.podman("run", "--rm", by_digest, *PYTHON, "print(1)").stdout == "1\n"
    rig.podman("rmi", by_digest)
    assert uses(rig) == 0


@pytest.fixture
def sub_ids(tmp_path: Path) -> Iterator[int]:
    """The account may map 65536 ids; the machine's own files are covered meanwhile."""
    covered: list[str] = []
    try:
        for name in ("/etc/subuid", "/etc/subgid"):
            file = tmp_path / Path(name).name
            file.write_text(f"{ROOTLESS}:200000:65536\n")
            file.chmod(0o644)
            if not Path(name).exists():
                Path(name).touch()
            subprocess.run(["mount", "--bind", file, name], check=True)
            covered.append(name)
        yield pwd.getpwnam(ROOTLESS).pw_uid
    finally:
        for name in covered:
            subprocess.run(["umount", name], check=True)


def test_rootless(rig: Podman, image: str, golden: Path, sub_ids: int) -> None:
    if not Path("/usr/bin/newuidmap").exists():
        pytest.skip("NO newuidmap: ROOTLESS PODMAN IS NOT TESTED (scripts/setup --test)")
    rig.start_store()
    user = Podman(rig.base, rig.host, sub_ids)
    user.process = rig.process
    try:
        pulled = user.podman("pull", image)
        assert "permission denied" not in pulled.stderr
        script = "import os; print(os.getuid(), os.stat('/usr').st_uid, os.stat('/etc').st_gid)"
        assert user.podman("run", "--rm", image, *PYTHON, script).stdout == "0 0 0\n"
        script = "import os; open('/etc/passwd', 'a').write('x'); os.remove('/etc/passwd')"
        user.podman("run", "--rm", image, *PYTHON, script)
        os.kill(rig.server(), signal.SIGKILL)
        assert user.podman("run", "--rm", image, *PYTHON, "print(1)").stdout == "1\n"
        clones = [point for point in rig.erofs() if point.parent.name.startswith("u")]
        assert len(clones) == 1
        assert clones[0].stat().st_uid == sub_ids, "owned by the user, whose root it is"
        assert clones[0].parent.stat().st_mode & 0o777 == 0o700
        # root's own images are another's business
        rig.podman("pull", image)
        user.podman("rmi", image)
        assert [point.parent.name for point in rig.erofs()] == ["host"]
        rig.podman("rmi", image)
        assert (uses(rig), rig.erofs()) == (0, [])
    finally:
        user.process = None
        user.end()


def test_a_private_image_is_for_those_who_may(rig: Podman, golden: Path, tmp_path: Path) -> None:
    """Root's credentials show nothing to other users."""
    directory = tmp_path / "private"
    directory.mkdir()
    image = golden / "images" / "layers-zstd"
    with docker_registry(directory, htpasswd_auth(directory)) as host:
        import rafs_v6

        headers = {"Authorization": f"Basic {AUTH}"}
        with Pusher(host, "secret", headers) as push:
            boot = image / "image.boot"
            order = [blob.blob_id for blob in rafs_v6.Bootstrap.from_file(boot).blobs]
            blobs = [(image / "blobs" / name).read_bytes() for name in order]
            document = push.nydus_image("1", boot.read_bytes(), blobs)
        auths = tmp_path / "auth.json"
        coded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        auths.write_text(json.dumps({"auths": {host: {"auth": coded}}}))
        rig.start_store("--authfile", str(auths))
        layer = document["layers"][-1]["digest"]
        name = base64.b64encode(f"{host}/secret:1".encode()).decode()
        place = rig.store / "names" / name / layer
        assert (place / "diff" / "usr").is_dir()
        look = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "stat"]
        refused = subprocess.run([*look, place], capture_output=True, text=True, check=False)
        assert "No such file" in refused.stderr
        target = place.joinpath("diff").readlink()
        refused = subprocess.run([*look, target], capture_output=True, text=True, check=False)
        assert "Permission denied" in refused.stderr
        assert PASSWORD not in rig.said()


def test_lookups_by_toc_digest(rig: Podman, golden: Path) -> None:
    """As containers/storage makes them from Podman 5.1 on, of an image that was so converted."""
    source = push(rig, golden / "images" / "layers-zstd")
    target = f"{source.rpartition(':')[0]}:toc"
    subprocess.run(
        [BIN / "nydusify", "convert", "--source", source, "--target", target, "--toc-digest",
         "--work-dir", rig.base / "work"],
        check=True, capture_output=True,
    )  # fmt: skip
    rig.start_store()
    names = rig.store / "names" / base64.b64encode(target.encode()).decode()
    import requests

    with requests.Session() as session:
        session.trust_env = False
        repo = target.partition("/")[2].rpartition(":")[0]
        kind = "application/vnd.oci.image.manifest.v1+json"
        document = session.get(
            f"http://{rig.host}/v2/{repo}/manifests/toc", headers={"Accept": kind}
        ).json()
    for layer in document["layers"]:
        toc = layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]
        place = names / toc
        assert place.joinpath("diff").is_dir()
        info = json.loads(place.joinpath("info").read_text())
        assert info["toc-digest"] == toc
        assert info["compressed-diff-digest"] == layer["digest"]
        assert info["compressed-size"] == layer["size"] == place.joinpath("blob").stat().st_size
        with pytest.raises(FileNotFoundError):
            place.joinpath("use").open("x")
    digest = document["layers"][-1]["digest"]
    data = (names / digest / "blob").read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest, "for podman push and save"
    tree = golden / "images" / "layers-zstd" / "expected.jsonl"
    assert_tree(names.joinpath(digest, "diff").readlink(), tree)
    assert uses(rig) == len(document["layers"])
    for layer in document["layers"]:
        with pytest.raises(OSError, match="No such file") as gone:
            (names / layer["digest"]).rmdir()
        assert gone.value.errno == errno.ENOENT
    assert (uses(rig), rig.erofs()) == (0, [])


@pytest.mark.long
@pytest.mark.parametrize("where", ["registry", "directory"])
def test_buildah_builds_on_an_image_that_lists_its_bootstrap_alone(
    rig: Podman, golden: Path, where: str
) -> None:
    if shutil.which("buildah") is None:
        pytest.skip("NO buildah: NOTHING IS BUILT ON A NYDUS IMAGE (scripts/setup --test)")
    image, words = golden / "images" / "layers-zstd", []
    with Pusher(rig.host, "base") as push:
        if where == "registry":
            for blob in (image / "blobs").iterdir():
                push.blob(blob.read_bytes())
        else:
            backend = {"type": "localfs", "localfs": {"dir": str(image / "blobs")}}
            (rig.base / "backend.json").write_text(json.dumps(backend))
            words = ["--backend", str(rig.base / "backend.json")]
        layer = bootstrap_layer((image / "image.boot").read_bytes())
        push.manifest("1", nydus_manifest(push, layer, []))
    base, policy = f"{rig.host}/base:1", ["--signature-policy", str(rig.policy)]
    rig.start_store(*words)

    def buildah(*argv: str) -> str:
        done = rig.run(["buildah", *argv])
        assert done.returncode == 0, f"{done.stderr}\n{rig.said()}"
        return done.stdout

    buildah("from", "--name", "work", *policy, base)
    script = "import os; open('/new', 'w').write('n'); os.remove('/etc/passwd')"
    buildah("run", "--isolation", "chroot", "work", *PYTHON, script)
    buildah("commit", *policy, "work", "built:1")
    script = "import os; print(open('/new').read(), os.path.exists('/etc/passwd'))"
    assert rig.podman("run", "--rm", "localhost/built:1", *PYTHON, script).stdout == "n False\n"
    buildah("rm", "work")
    rig.podman("rmi", "localhost/built:1", base)
    assert (uses(rig), rig.erofs()) == (0, [])


@pytest.mark.long
def test_names_that_mean_nothing(rig: Podman, image: str) -> None:
    rig.start_store()
    names = rig.store / "names"
    assert list(names.iterdir()) == []
    known = names / base64.b64encode(image.encode()).decode()
    for path in (
        names / "x", names / "..." / "y", names / base64.b64encode(b"NOT/a ref").decode(),
        known / "sha256:0", known / f"sha256:{'0' * 64}", known / ("z" * 255),
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError):
            path.stat()
    with pytest.raises(OSError, match="Read-only"):
        names.joinpath("new").mkdir()
    other = subprocess.run(
        [BIN / "nydus-fscache", "store", rig.store, "--root", rig.root],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert other.returncode == 8
    assert "another store serves" in other.stderr
