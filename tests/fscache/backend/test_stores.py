"""s3 against moto with signatures checked, our signer against botocore's; oss; http-proxy."""

from __future__ import annotations

import re
import socketserver
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from backend_kit import Make, soon
from rangeserver import RangeServer, _Handler
from servers import moto_server

from nydus_fscache.backend.oss import oss_signature
from nydus_fscache.backend.s3 import Keys, sign_v4
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError, UsageError

REGION = "eu-central-1"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of an S3 and IAM server."""
    with moto_server(tmp_path_factory.mktemp("moto")) as host:
        yield host


def moto_account(host: str, data: bytes, name: str) -> tuple[str, str]:
    """A bucket with the blob, and a user who may read it; then signatures are checked."""
    from botocore.config import Config
    from botocore.session import Session

    session = Session()
    session.set_credentials("setup", "setup")
    options = {"region_name": REGION, "endpoint_url": f"http://{host}"}
    s3 = session.create_client("s3", **options, config=Config(s3={"addressing_style": "path"}))
    s3.create_bucket(Bucket="images", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="images", Key=f"pre fix/{name}", Body=data)
    iam = session.create_client("iam", **options)
    iam.create_user(UserName="reader")
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'
    )
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    requests.post(f"http://{host}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()
    return key["AccessKeyId"], key["SecretAccessKey"]


@pytest.mark.filterwarnings("default")  # botocore's own
def test_s3_with_checked_signatures(moto: str, make: Make, data: bytes, blob_id: str) -> None:
    key_id, secret = moto_account(moto, data, blob_id)
    options = {
        "scheme": "http",
        "endpoint": moto,
        "region": REGION,
        "bucket_name": "images",
        "object_prefix": "pre fix/",
        "access_key_id": key_id,
    }
    backend = make("s3", access_key_secret=secret, **options)
    assert backend.size(blob_id, deadline=soon()) == len(data)
    assert backend.read(blob_id, 1000, 5000, deadline=soon()) == data[1000:6000]
    with pytest.raises(BackendError, match="answers 404"):
        backend.read("0" * 64, 0, 1, deadline=soon())
    liar = make("s3", access_key_secret="wrong", **options)
    with pytest.raises(BackendError, match="answers 403") as caught:
        liar.size(blob_id, deadline=soon())
    assert caught.value.hint


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("token", ["", "session/token+with=signs"])
@pytest.mark.parametrize(
    "url",
    [
        "https://bucket.s3.eu-central-1.amazonaws.com/blob",
        "http://127.0.0.1:9000/bucket/pre%20fix/a~b_c-d.e",
        "https://h.example:8443/b/k",
    ],
)
def test_signature_as_botocore_makes_it(url: str, token: str) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    headers = {"Range": "bytes=5-99"}
    keys = Keys(REGION, "AKID", "secret/key", token)
    ours = sign_v4("GET", Url.parse(url), headers, keys, datetime.now(UTC))
    request = AWSRequest("GET", url, headers={**headers})
    signer = S3SigV4Auth(Credentials("AKID", "secret/key", token or None), "s3", REGION)
    request.headers["X-Amz-Content-SHA256"] = ours["x-amz-content-sha256"]
    request.context["timestamp"] = ours["x-amz-date"]
    request.headers["X-Amz-Date"] = ours["x-amz-date"]
    if token:
        request.headers["X-Amz-Security-Token"] = token
    text = signer.string_to_sign(request, signer.canonical_request(request))
    expected = signer.signature(text, request)
    assert ours["Authorization"].endswith(f"Signature={expected}")


def test_s3_virtual_host_style_and_public_buckets(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as server:
        common = {"scheme": "http", "region": "r", "bucket_name": "images"}
        backend = make(
            "s3",
            endpoint="s3.example",
            addressing="virtual",
            proxy={"url": server.url, "fallback": False},
            **common,
        )
        assert backend.read(blob_id, 1, 2, deadline=soon()) == data[1:3]
        assert server.seen[0].path == f"http://images.s3.example/{blob_id}"
        assert "Authorization" not in server.seen[0].headers
    with pytest.raises(UsageError):
        make("s3", access_key_id="only", **common)


def test_oss_signature_of_the_published_example() -> None:
    """From the header signing page of Aliyun's OSS documentation."""
    headers = {
        "Content-MD5": "ODBGOERFMDMzQTczRUY3NUE3NzA5QzdFNUYzMDQxNEM=",
        "Content-Type": "text/html",
        "X-OSS-Meta-Author": "foo@bar.com",
        "X-OSS-Magic": "abracadabra",
    }
    signature = oss_signature(
        "OtxrzxIsfpFjA7SwPzILwy8Bw21TLhquhboDYROV",
        "PUT",
        headers,
        "Thu, 17 Nov 2005 18:49:58 GMT",
        "/oss-example/nelson",
    )
    assert signature == "26NBxoKdsyly4EDv6inkoDft/yA="


@pytest.mark.parametrize("by_address", [True, False])
def test_oss(blobs: Path, make: Make, data: bytes, blob_id: str, by_address: bool) -> None:
    with RangeServer(blobs) as server:
        more = {} if by_address else {"proxy": {"url": server.url, "fallback": False}}
        backend = make(
            "oss",
            scheme="http",
            endpoint=server.host if by_address else "oss.example",
            bucket_name="images",
            object_prefix="p/",
            access_key_id="id",
            access_key_secret="secret",
            **more,
        )
        assert backend.read(blob_id, 10, 20, deadline=soon()) == data[10:30]
        seen = server.seen[0]
        path = f"images/p/{blob_id}" if by_address else f"p/{blob_id}"
        assert urlsplit(seen.path).path == f"/{path}"
        assert seen.headers["Host"] == (server.host if by_address else "images.oss.example")
        resource = f"/images/p/{blob_id}"
        expected = oss_signature("secret", "GET", {}, seen.headers["Date"], resource)
        assert seen.headers["Authorization"] == f"OSS id:{expected}"
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", seen.headers["Date"])


def test_http_proxy_over_tcp(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    with RangeServer(blobs) as server:
        backend = make("http-proxy", addr=server.url, path="/some/path")
        assert backend.size(blob_id, deadline=soon()) == len(data)
        assert backend.read(blob_id, 4, 4, deadline=soon()) == data[4:8]
        assert server.seen[0].path == f"/some/path/{blob_id}"
    with pytest.raises(UsageError):
        make("http-proxy", addr="/no/such/socket")


class UnixRangeServer(RangeServer):
    address_family = 1  # AF_UNIX

    def server_bind(self) -> None:
        self.server_address = str(self.directory / "socket")  # type: ignore[assignment]
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> tuple[object, object]:  # type: ignore[override]
        sock, _ = self.socket.accept()
        return sock, ("unix", 0)


def test_http_proxy_over_unix_socket(
    blobs: Path, make: Make, data: bytes, blob_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "disable_nagle_algorithm", False)
    with UnixRangeServer(blobs) as server:
        backend = make("http-proxy", addr=str(blobs / "socket"), path="p")
        assert backend.size(blob_id, deadline=soon()) == len(data)
        assert backend.read(blob_id, 4, 400_000, deadline=soon()) == data[4:400_004]
        assert server.seen[0].path == f"/p/{blob_id}"


def test_s3_follows_a_bucket_that_moved_with_a_new_signature(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    keys = {"access_key_id": "id", "access_key_secret": "secret"}
    with RangeServer(blobs) as there:
        locations = [f"{there.url}/b/{blob_id}"]

        def route(*_: object) -> tuple[int, dict[str, str], bytes]:
            return 307, {"Location": locations[0]}, b""

        with RangeServer(blobs, route=route) as first:
            options = {"scheme": "http", "region": "r", "bucket_name": "b", "retry_limit": 1}
            backend = make("s3", endpoint=first.host, **options, **keys)
            assert backend.read(blob_id, 5, 50, deadline=soon()) == data[5:55]
            signatures = [s.headers["Authorization"] for s in (first.seen[0], there.seen[0])]
            assert signatures[0] != signatures[1]  # the host is part of it
            for bad in ("http://elsewhere.example/x", "", f"{first.url}/b/{blob_id}"):
                locations[0] = bad
                with pytest.raises(BackendError, match="redirect"):
                    backend.read(blob_id, 5, 50, deadline=soon())


def test_s3_in_another_region(blobs: Path, make: Make, blob_id: str) -> None:
    def route(*_: object) -> tuple[int, dict[str, str], bytes]:
        return 301, {"x-amz-bucket-region": "eu-west-9"}, b""

    with RangeServer(blobs, route=route) as server:
        backend = make("s3", scheme="http", endpoint=server.host, region="r", bucket_name="b")
        with pytest.raises(BackendError, match="region 'eu-west-9'"):
            backend.read(blob_id, 5, 50, deadline=soon())
