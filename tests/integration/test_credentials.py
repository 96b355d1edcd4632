"""Runs by users with few rights, and with keys that expire, on Ceph."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from lsst.daf.butler import Butler

from spark_butler._lsst_resources import forget_s3_clients
from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import wait_until
from spark_butler.spark.java import find_java_home
from tests.support.clusters import Cluster
from tests.support.mock_night import fill_mock_night, task_text
from tests.support.stores import Store, missing, serve

pytestmark = [pytest.mark.stores, pytest.mark.slow]

_BUCKET = "credentials"
_DETECTORS = 8


@dataclasses.dataclass(frozen=True)
class Ceph:
    """A Ceph server whose users can be changed."""

    store: Store
    folder: Path

    def change(self, *arguments: str) -> None:
        """Change users by Ceph's own command."""
        command = ["radosgw-admin", "-c", str(self.folder / "ceph.conf"), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def add_user(self, name: str) -> Store:
        """Add a user without any rights on the buckets of others."""
        user = Store(self.store.endpoint, key=f"key-of-{name}")
        names = (f"--uid={name}", f"--display-name={name}")
        self.change("user", "create", *names, f"--access-key={user.key}", f"--secret-key={user.secret}")
        return user


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A Ceph server."""
    if reason := missing("ceph"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("ceph")
    with serve("ceph", folder) as store:
        _client(store).create_bucket(Bucket=_BUCKET)
        yield Ceph(store, folder)


def _client(user: Store) -> Any:
    keys = {"aws_access_key_id": user.key, "aws_secret_access_key": user.secret}
    return boto3.Session().client("s3", endpoint_url=user.endpoint, region_name="us-east-1", **keys)


@dataclasses.dataclass(frozen=True)
class Place:
    """A repository with a pipeline whose quanta take some time."""

    repo: Path
    pipeline: Path
    run: str

    def arguments(self, backend: str) -> list[str]:
        """Return the command of a run."""
        program = [str(Path(sys.executable).with_name("spark-butler")), "run", "--backend", backend]
        data = ["-b", str(self.repo), "-i", "inputs", "-p", str(self.pipeline), "--output-run", self.run]
        return [*program, *data, "-d", "instrument='Cam1'", "--register-dataset-types"]


def _make_place(folder: Path, owner: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Make a repository as the owner of the bucket."""
    for variable, value in owner.environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    forget_s3_clients()
    each = ("visit", "detector")
    first = task_text(
        "first",
        "tests.support.engine_tasks.OverlapTask",
        each,
        f'config.inputs["in"] = C(dataset_type_name="mock_raw", dimensions={list(each)})',
        f'config.outputs["out"] = C(dataset_type_name="mock_first", dimensions={list(each)})',
        f'config.folder = "{folder}"',
        "config.number = 2",
    )
    second = task_text(
        "second",
        "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask",
        each,
        f'config.inputs["in"] = C(dataset_type_name="mock_first", dimensions={list(each)})',
        f'config.outputs["out"] = C(dataset_type_name="mock_second", dimensions={list(each)})',
    )
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(f"description: Two mock tasks.\ntasks:{first}{second}")
    repo = make_repository(folder / "repo", f"s3://{_BUCKET}/{name}/")
    fill_mock_night(repo, pipeline, visits=1, detectors=_DETECTORS, inputs=["mock_raw"])
    return Place(repo, pipeline, "u/run")


def _environment(variables: Mapping[str, str], conf: Path, master: str) -> dict[str, str]:
    """Return the environment of a driver whose session has a master."""
    conf.mkdir()
    settings = {"spark.master": master, "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false"}
    settings |= {"spark.driver.host": "127.0.0.1", "spark.executor.memory": "512m"}
    (conf / "spark-defaults.conf").write_text("".join(f"{name} {it}\n" for name, it in settings.items()))
    found = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **found,
        **variables,
        "SPARK_CONF_DIR": str(conf),
        "JAVA_HOME": str(find_java_home()),
        "PYSPARK_PYTHON": sys.executable,
    }


def _keys(ceph: Ceph, prefix: str) -> dict[str, dict[str, Any]]:
    pages = _client(ceph.store).get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=_BUCKET, Prefix=prefix, FetchOwner=True)
    return {each["Key"]: each for page in found for each in page.get("Contents", ())}


def _count(repo: Path, run: str) -> int:
    with Butler.from_config(repo) as butler:
        return len(butler.query_datasets("mock_second", collections=run, explain=False))


def _allow(user: str, action: str, below: str) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]},
        "Action": [f"s3:{action}"],
        "Resource": [f"arn:aws:s3:::{_BUCKET}/{below}*"],
    }


def _allow_listing(user: str) -> dict[str, Any]:
    # With a condition on the prefix, a store would answer for absent files that access is denied.
    return {**_allow(user, "ListBucket", ""), "Resource": [f"arn:aws:s3:::{_BUCKET}"]}


def _is_denied(client: Any, operation: str, key: str, **arguments: Any) -> bool:
    try:
        getattr(client, operation)(Bucket=_BUCKET, Key=key, **arguments)
    except ClientError as exc:
        return bool(exc.response["Error"]["Code"] == "AccessDenied")
    return False


def test_run_needs_no_more_rights_than_documented(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _make_place(tmp_path, ceph.store, "rights", monkeypatch)
    driver, worker, reader = (ceph.add_user(name) for name in ("driver", "worker", "reader"))
    statements = [
        *(_allow(name, "GetObject", "rights/") for name in ("driver", "worker", "reader")),
        *(_allow_listing(name) for name in ("driver", "worker", "reader")),
        _allow("driver", "PutObject", "rights/"),
        _allow("worker", "PutObject", f"rights/{place.run}/"),
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    _client(ceph.store).put_bucket_policy(Bucket=_BUCKET, Policy=policy)
    before = set(_keys(ceph, "rights/"))
    inside, outside = f"rights/{place.run}/mock_first/x", "rights/elsewhere"
    for user, allowed in ((driver, {inside, outside}), (worker, {inside}), (reader, set[str]())):
        client = _client(user)
        for key in (inside, outside):
            assert _is_denied(client, "put_object", key, Body=b"") == (key not in allowed)
        assert _is_denied(client, "delete_object", min(before))
    for key in (inside, outside):
        _client(ceph.store).delete_object(Bucket=_BUCKET, Key=key)

    environment = _environment(reader.environment(), tmp_path / "conf-of-reader", "local[1]")
    refused = subprocess.run(place.arguments("serial"), env=environment, capture_output=True, text=True)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("Error")]
    assert "refuses PutObject" in line
    assert "access is denied" in line
    assert set(_keys(ceph, "rights/")) == before

    (tmp_path / "cluster").mkdir()
    with Cluster.start(tmp_path / "cluster", memory="1g", environment=worker.environment()) as cluster:
        environment = _environment(driver.environment(), tmp_path / "conf", cluster.address)
        command = [*place.arguments("spark"), "--temporary", "mock_first", "--group-by", "fused"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _count(place.repo, place.run) == _DETECTORS
    made = {key: each["Owner"]["ID"] for key, each in _keys(ceph, f"rights/{place.run}/").items()}
    by_worker = {key for key, owner in made.items() if owner == "worker"}
    # The outputs, metadata and logs of all quanta; configurations and packages are the driver's.
    assert len(by_worker) == 5 * _DETECTORS
    assert {made[key] for key in made.keys() - by_worker} == {"driver"}
    assert not any("_config" in key or "packages" in key for key in by_worker)


def test_keys_that_expire_are_renewed_by_workers(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _make_place(tmp_path, ceph.store, "renewal", monkeypatch)
    keys = tmp_path / "keys.json"
    users = {name: Store(ceph.store.endpoint, key=name) for name in ("first-key", "second-key")}
    for user in users.values():
        given = (f"--access-key={user.key}", f"--secret-key={user.secret}")
        ceph.change("key", "create", "--uid=butler", "--key-type=s3", *given)

    def give(user: Store) -> None:
        # Within the last ten minutes botocore asks anew before each request.
        expiration = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=590)
        text = {"Version": 1, "AccessKeyId": user.key, "SecretAccessKey": user.secret}
        (tmp_path / "new").write_text(json.dumps({**text, "Expiration": expiration.isoformat()}))
        (tmp_path / "new").rename(keys)

    give(users["first-key"])
    config = tmp_path / "config"
    config.write_text(f"[profile renewed]\ncredential_process = /bin/cat {keys}\nregion = us-east-1\n")
    variables = {"AWS_CONFIG_FILE": str(config), "AWS_PROFILE": "renewed", "no_proxy": "127.0.0.1"}
    variables["S3_ENDPOINT_URL"] = ceph.store.endpoint
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "cluster").mkdir()
    metadata = f"renewal/{place.run}/first_metadata/"
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster.start(tmp_path / "cluster", memory="1g", environment=variables))
        environment = _environment(variables, tmp_path / "conf", cluster.address)
        log = stack.enter_context((tmp_path / "log").open("wb"))
        process = subprocess.Popen(place.arguments("spark"), env=environment, stdout=log, stderr=log)
        stack.callback(process.kill)
        assert wait_until(lambda: _keys(ceph, metadata) or process.poll() is not None, 400)
        give(users["second-key"])
        early = len(_keys(ceph, metadata))
        ceph.change("key", "rm", "--uid=butler", f"--access-key={users['first-key'].key}")
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            _client(users["first-key"]).list_objects_v2(Bucket=_BUCKET)
        status = process.wait(400)
    assert status == 0, (tmp_path / "log").read_text()
    assert 0 < early < _DETECTORS, "the keys expired before or after the run"
    assert _count(place.repo, place.run) == _DETECTORS
