"""The proxy spoils what it should, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from spark_butler.demo.s3server import EmbeddedS3
from tests.support.fault_proxy import FAULTS, FaultPlan, FaultProxy

pytestmark = pytest.mark.slow

_BODY = os.urandom(300_000)


@pytest.fixture
def make_proxy(s3_server: EmbeddedS3, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start proxies: ``make_proxy(plan)`` returns the proxy and a client of it that never tries twice."""
    started: list[FaultProxy] = []

    def make(plan: FaultPlan) -> tuple[FaultProxy, Any]:
        proxy = FaultProxy(s3_server.endpoint_url, plan, tmp_path / f"requests{len(started)}")
        started.append(proxy.__enter__())
        config = Config(retries={"total_max_attempts": 1}, read_timeout=5, proxies={})
        return proxy, boto3.client("s3", endpoint_url=proxy.endpoint_url, config=config)

    yield make
    for proxy in started:
        proxy.__exit__(None, None, None)


def test_proxy_forwards_requests_without_fault(make_proxy: Callable[..., Any], s3_bucket: str) -> None:
    proxy, client = make_proxy(FaultPlan())
    client.put_object(Bucket=s3_bucket, Key="a b/ü+1", Body=_BODY)
    assert client.get_object(Bucket=s3_bucket, Key="a b/ü+1")["Body"].read() == _BODY
    assert client.head_object(Bucket=s3_bucket, Key="a b/ü+1")["ContentLength"] == len(_BODY)
    part = client.get_object(Bucket=s3_bucket, Key="a b/ü+1", Range="bytes=10-19")["Body"].read()
    assert part == _BODY[10:20]
    assert [each["Key"] for each in client.list_objects_v2(Bucket=s3_bucket)["Contents"]] == ["a b/ü+1"]
    client.delete_objects(Bucket=s3_bucket, Delete={"Objects": [{"Key": "a b/ü+1"}]})
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=s3_bucket, Key="a b/ü+1")
    assert not proxy.count_faults()
    assert len(proxy.requests()) == 7


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_effect_and_ends(
    make_proxy: Callable[..., Any], s3_bucket: str, s3_server: EmbeddedS3, fault: str
) -> None:
    plan = FaultPlan(rates={fault: 1.0}, budget=1, slow_seconds=0.2, hang_seconds=0.2)
    proxy, client = make_proxy(plan)

    def put() -> None:
        client.put_object(Bucket=s3_bucket, Key=fault, Body=_BODY)

    def is_there() -> bool:
        return "Contents" in s3_server.client().list_objects_v2(Bucket=s3_bucket)

    if fault == "slow":
        put()
    else:
        with pytest.raises((BotoCoreError, ClientError)) as caught:
            put()
        assert is_there() == (fault in ("500-after", "reset-after", "reset-middle", "short", "truncated"))
        if isinstance(caught.value, ClientError):
            error = caught.value.response["Error"]["Code"]
            assert error == {"503": "SlowDown"}.get(fault, "InternalError")
        put()
    if fault == "slow":
        assert client.get_object(Bucket=s3_bucket, Key=fault)["Body"].read() == _BODY
    elif fault == "short":
        assert client.get_object(Bucket=s3_bucket, Key=fault)["Body"].read() == _BODY[: len(_BODY) // 2]
    else:
        with pytest.raises((BotoCoreError, ClientError)):
            client.get_object(Bucket=s3_bucket, Key=fault)["Body"].read()
    assert client.get_object(Bucket=s3_bucket, Key=fault)["Body"].read() == _BODY
    assert sum(proxy.count_faults().values()) == 2


def test_fault_states_start_and_end(make_proxy: Callable[..., Any], s3_bucket: str) -> None:
    proxy, client = make_proxy(FaultPlan())
    for state, text in (("expired", "ExpiredToken"), ("overload", "SlowDown"), ("outage", "Connection")):
        proxy.suffer(state, 600)
        with pytest.raises((BotoCoreError, ClientError), match=text):
            client.put_object(Bucket=s3_bucket, Key="key", Body=b"")
        proxy.be_kind()
        client.put_object(Bucket=s3_bucket, Key="key", Body=b"")


def test_same_seed_faults_the_same_requests() -> None:
    plan = FaultPlan(seed=3, rates={"500": 0.2, "slow": 0.1})
    drawn = [plan.choose("PUT", f"/bucket/{n}", 0) for n in range(500)]
    assert drawn == [plan.choose("PUT", f"/bucket/{n}", 0) for n in range(500)]
    assert drawn != [plan.choose("PUT", f"/bucket/{n}", 1) for n in range(500)]
    assert 70 < drawn.count("500") < 130
    assert 30 < drawn.count("slow") < 70
