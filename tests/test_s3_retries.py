"""Settings of the S3 clients that lsst.resources makes: checksums, deadlines, and what workers get."""

from __future__ import annotations

import base64
import hashlib
import http.server
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from botocore.exceptions import ReadTimeoutError
from lsst.resources import ResourcePath
from lsst.resources.s3 import S3ResourcePath

from spark_butler import s3_retries
from spark_butler._lsst_resources import forget_s3_clients
from spark_butler.worker.environment import worker_environment

type Request = tuple[str, dict[str, str], bytes]


class _Recorder(http.server.BaseHTTPRequestHandler):
    """Accepts every request and keeps it."""

    protocol_version = "HTTP/1.1"
    requests: list[Request]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.requests.append((self.command, headers, body))
        text = b'<?xml version="1.0"?><DeleteResult></DeleteResult>' if self.command == "POST" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3ResourcePath]:
    """An object in a store of which nothing is known yet."""
    for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in s3_retries.CHECKSUM_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    uri = ResourcePath("s3://bucket/a/b")
    assert isinstance(uri, S3ResourcePath)
    yield uri
    forget_s3_clients()


@pytest.fixture
def requests(place: S3ResourcePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Request]]:
    """Requests to a store that answers everything."""
    handler = type("Handler", (_Recorder,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield handler.requests  # type: ignore[attr-defined]
        s3_retries.close_client(place.client)
        server.shutdown()
        thread.join()


def test_bulk_removal_has_the_checksum_that_old_stores_want(
    place: S3ResourcePath, requests: list[Request]
) -> None:
    s3_retries.prepare_client(place)
    removed = ResourcePath.mremove([place, place.updatedFile("c")], do_raise=False)
    assert all(each.success for each in removed.values())
    ((method, headers, body),) = requests
    assert method == "POST"
    assert b"a/b" in body
    assert base64.b64decode(headers["content-md5"]) == hashlib.md5(body).digest()


def test_checksums_are_as_old_stores_want_them_though_a_client_was_there_before(
    place: S3ResourcePath, requests: list[Request]
) -> None:
    assert place.client.meta.config.request_checksum_calculation == "when_supported"
    s3_retries.prepare_client(place)
    place.write(b"data")
    (headers,) = [headers for method, headers, _ in requests if method == "PUT"]
    assert not [name for name in headers if "checksum" in name or "trailer" in name]


def test_client_is_prepared_once(place: S3ResourcePath, requests: list[Request]) -> None:
    client = s3_retries.prepare_client(place)
    assert s3_retries.prepare_client(place) is client
    place.write(b"data")
    assert len(requests) == 1


def test_user_chooses_checksums(
    place: S3ResourcePath, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_retries.CHECKSUM_VARIABLES:
        monkeypatch.setenv(name, "WHEN_SUPPORTED")
    client = place.client
    assert s3_retries.prepare_client(place) is client
    assert client.meta.config.request_checksum_calculation == "when_supported"


def test_store_that_falls_silent_is_named_and_given_up(
    place: S3ResourcePath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(s3_retries, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(s3_retries, "_RETRY_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        client = s3_retries.prepare_client(place)
        began = time.monotonic()
        with caplog.at_level(logging.WARNING), pytest.raises(ReadTimeoutError, match=address):
            client.head_object(Bucket="bucket", Key="a/b")
    assert time.monotonic() - began < 10
    assert f"has not answered HEAD {address}/bucket/a/b" in caplog.text


def test_workers_get_certificates_and_profiles_but_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "AWS_CA_BUNDLE": "/etc/ca.pem",
        "REQUESTS_CA_BUNDLE": "/etc/ca.pem",
        "LSST_RESOURCES_S3_PROFILE_ceph": "https://ceph.example.org",
    }
    kept = {
        "LSST_RESOURCES_S3_PROFILE_swift": "https://butler%3As3:secret@swift.example.org",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name, value in {**given, **kept}.items():
        monkeypatch.setenv(name, value)
    environment = worker_environment()
    assert given.items() <= environment.items()
    assert not kept.keys() & environment.keys()
