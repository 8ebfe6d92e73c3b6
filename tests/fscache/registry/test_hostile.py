"""Whatever a registry, an image or a configuration says: an answer, or an error of ours."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_fscache.backend.make import make_backend
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError, BadImage, UsageError
from nydus_fscache.http.redirect import RedirectRules
from nydus_fscache.registry.challenge import Challenge, parse_challenge
from nydus_fscache.registry.layer import extract_bootstrap
from nydus_fscache.registry.manifest import choose_manifest, is_index, nydus_image, parse_document
from nydus_fscache.registry.reference import Reference

HEADER = st.text(alphabet='Bearbscoim NTLM,="\\/:?\t-\x00é', max_size=200)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
BOOT = bytes(range(256)) * 8


def a_layer(format_: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
        for name, data in (("image/" + "n" * 200, b"x" * 700), ("image/image.boot", BOOT)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@given(HEADER)
def test_any_challenge(header: str) -> None:
    found = parse_challenge(header)
    assert found is None or isinstance(found, Challenge)


@given(
    st.lists(
        st.sampled_from(["Negotiate", "NTLM", "Negotiate YII=", 'Digest realm="d", qop="a,b"'])
    ),
    st.sampled_from(["Basic", 'Basic realm="a, b"', 'Bearer realm="http://t",service="s"']),
    st.lists(st.sampled_from(["Negotiate", "NTLM", 'Digest realm="d"'])),
)
def test_a_known_scheme_is_found_wherever_it_stands(
    before: list[str], known: str, behind: list[str]
) -> None:
    found = parse_challenge(", ".join([*before, known, *behind]))
    assert found is not None
    assert found.scheme == known.partition(" ")[0].lower()
    assert found.service == ("s" if found.scheme == "bearer" else "")


@given(st.text(max_size=60), st.sampled_from(["http", "https"]))
def test_any_location(location: str, scheme: str) -> None:
    home = Url.parse(f"{scheme}://r.example/v2/")
    try:
        there = RedirectRules().target(home, home, location)
    except BackendError:
        return
    assert there.scheme in ("http", "https")
    assert not (scheme == "https" and there.scheme == "http")
    assert there.target.isascii()
    assert not set(there.target) & set(" \r\n")


@given(st.text(max_size=40) | st.from_regex(r"[a-z.:/@\[\]0-9-]{0,40}", fullmatch=True))
def test_any_reference(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert Reference.parse(str(Reference.parse(text))).repo


@given(JSON, st.sampled_from(["layers", "manifests", "mediaType", "annotations"]))
def test_any_manifest(value: object, name: str) -> None:
    for document in (value, {name: value}, {"layers": [value]}, {"manifests": [value]}):
        with contextlib.suppress(BadImage):
            found = parse_document(json.dumps(document).encode())
            if is_index(found, ""):
                choose_manifest(found, "amd64")
            else:
                nydus_image(found, "name")


@settings(deadline=None)
@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]).filter(
        lambda f: f != tarfile.USTAR_FORMAT
    ),
    st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=8)), max_size=3),
    st.integers(0, 8000),
)
def test_damaged_layers(format_: int, patches: list[tuple[int, bytes]], cut: int) -> None:
    layer = bytearray(a_layer(format_))
    assert extract_bootstrap(bytes(layer)) == BOOT
    for off, data in patches:
        layer[off : off + len(data)] = data
    for damaged in (bytes(layer), bytes(layer[:cut]), gzip.compress(bytes(layer))):
        with contextlib.suppress(BadImage):
            assert 0 < len(extract_bootstrap(damaged)) <= len(layer)


@given(st.sampled_from(["registry", "s3", "oss", "http-proxy", "localfs", "localdisk"]), JSON)
def test_any_options(kind: str, options: object) -> None:
    with contextlib.suppress(UsageError, BackendError):
        make_backend({"type": kind, kind: options}).close()
    with contextlib.suppress(UsageError, BackendError):
        whole = {"host": "h", "repo": "r", "proxy": options, "mirrors": options, "auth": options}
        make_backend({"type": "registry", "registry": whole}).close()
