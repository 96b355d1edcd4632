"""``spark-butler doctor`` finds and names planted faults."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from lsst.daf.butler import Butler

from spark_butler import _lsst_resources
from spark_butler.cli.main import main
from spark_butler.demo.repository import make_repository
from spark_butler.repository import store_checks
from spark_butler.repository.doctor_checks import compare_processes, describe_process
from tests.support.fake_s3 import FakeS3
from tests.support.stores import Store, serve_tls


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in a store that is not there yet."""
    for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(store_checks, "_READ_SECONDS", 1)
    _lsst_resources.forget_s3_clients()
    return make_repository(tmp_path / "repo", "s3://bucket/repo/")


def _examine(repo: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status and the findings that are not ok."""
    result = CliRunner().invoke(main, ["doctor", "-b", str(repo), "--no-spark", "--format", "json"])
    assert result.exit_code in (0, 1), result.output
    found = {each["check"]: each for each in json.loads(result.output) if each["state"] != "ok"}
    assert all(each["remedy"] for each in found.values())
    return result.exit_code, found


@pytest.mark.parametrize(
    ("fake", "check", "text"),
    [
        (FakeS3({"GET": "SignatureDoesNotMatch"}), "repository", "the secret key is wrong"),
        (FakeS3({"GET": "InvalidAccessKeyId"}), "repository", "doesn't know the access key"),
        (FakeS3({"GET": "NoSuchBucket"}), "repository", "no such bucket"),
        (FakeS3(is_store=False), "repository", "a web server that is not an S3 store"),
        (FakeS3({"PUT": "AccessDenied"}), "store: put", "refuses PutObject .* access is denied"),
        (FakeS3(clock=1200), "clock", "differs by (20 min|19 min 59 s)"),
        (FakeS3({"GET": "RequestTimeTooSkewed"}), "repository", "clock differs too much"),
    ],
    ids=["wrong-secret", "wrong-key", "no-bucket", "wrong-server", "no-put", "clock", "clock-refused"],
)
def test_fault_of_the_store_is_found(
    fake: FakeS3, check: str, text: str, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake.serve() as address:
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        status, found = _examine(repo)
    assert status == 1
    assert re.search(text, found[check]["text"]), found


def test_missing_right_to_remove_is_a_warning(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeS3({"DELETE": "AccessDenied"}).serve() as address:
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        status, found = _examine(repo)
    assert (status, list(found)) == (0, ["store: delete"])
    assert "refuses DeleteObject" in found["store: delete"]["text"]


def test_wrong_endpoint_and_silent_store_are_found(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        status, found = _examine(repo)
        assert (status, list(found)) == (1, ["repository"])
        assert "Read timeout" in found["repository"]["text"]
    status, found = _examine(repo)
    assert status == 1
    assert f"can't be reached at {address}" in found["repository"]["text"]


def test_expired_credentials_of_a_program_are_found(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, config = tmp_path / "keys.json", tmp_path / "config"
    given = {"Version": 1, "AccessKeyId": "key", "SecretAccessKey": "secret"}
    keys.write_text(json.dumps({**given, "Expiration": "2020-01-01T00:00:00+00:00"}))
    config.write_text(f"[profile old]\ncredential_process = cat {keys}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "old")
    with FakeS3().serve() as address:
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        status, found = _examine(repo)
    assert (status, list(found)) == (1, ["repository"])
    assert "still expired" in found["repository"]["text"]


def test_unknown_certificate_is_found(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    with FakeS3().serve() as address, serve_tls(Store(address), tmp_path / "tls") as (store, authority):
        monkeypatch.setenv("S3_ENDPOINT_URL", store.endpoint)
        status, found = _examine(repo)
        assert status == 1
        assert "Set AWS_CA_BUNDLE" in found["repository"]["text"]
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        _lsst_resources.forget_s3_clients()
        assert _examine(repo) == (0, {})
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    assert "AWS_CA_BUNDLE is '/nowhere/ca.pem'" in _examine(repo)[1]["certificates"]["text"]


def test_registry_that_is_down_is_found(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    file = repo / "butler.yaml"
    config = yaml.safe_load(file.read_text())
    config["registry"]["db"] = "postgresql+psycopg://me@127.0.0.1:9/lsst"
    file.write_text(yaml.safe_dump(config))
    with FakeS3().serve() as address:
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        status, found = _examine(repo)
    assert status == 1
    assert "refused" in found["repository"]["text"]


def test_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Butler.makeRepo(tmp_path / "repo")
    assert _examine(tmp_path / "repo") == (0, {})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    status, found = _examine(tmp_path / "repo")
    assert (status, list(found)) == (1, ["disk"])


def test_other_environment_of_a_worker_is_found() -> None:
    driver = describe_process()
    assert all(each.state == "ok" for each in compare_processes(driver, driver))
    packages = {**driver.packages, "lsst-pipe-base": "absent", "numpy": "1.0"}
    worker = dataclasses.replace(driver, host="far", python="3.1.4", packages=packages)
    found = {each.text: each.state for each in compare_processes(driver, worker)}
    assert found[f"Python 3.1.4; the driver has {driver.python}"] == "fault"
    assert found[f"lsst-pipe-base is absent; the driver has {driver.packages['lsst-pipe-base']}"] == "fault"
    assert found[f"numpy is 1.0; the driver has {driver.packages['numpy']}"] == "warning"


@pytest.mark.slow
@pytest.mark.jvm
def test_workers_are_examined(tmp_path: Path) -> None:
    Butler.makeRepo(tmp_path / "repo")
    done = subprocess.run(
        ["spark-butler", "doctor", "-b", tmp_path / "repo"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "worker on" in done.stdout
    assert "0 of" in done.stdout
