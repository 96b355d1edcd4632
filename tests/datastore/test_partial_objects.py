"""Objects that arrive in part: what a run says about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from spark_butler._lsst_resources import forget_s3_clients
from tests.support.fault_proxy import FaultPlan, FaultProxy
from tests.support.job_harness import JobRepo


def test_object_that_arrives_in_part_is_described_by_its_sizes(
    job_repo: JobRepo,
    run_job: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = FaultPlan(rates={"truncated": 1.0}, budget=100, only="GET .*mock_raw")
    with FaultProxy(job_repo.server.endpoint_url, plan, tmp_path / "requests") as proxy:
        monkeypatch.setenv("S3_ENDPOINT_URL", proxy.endpoint_url)
        forget_s3_clients()
        query = ("-d", "instrument='Cam1' AND detector=1", "--retries", "0", "--format", "json")
        run = ("--output-run", "u/part", "--register-dataset-types", "--backend", "serial")
        result = run_job(*job_repo.arguments, *run, *query)
        (target,) = {each["target"].partition("?")[0] for each in proxy.requests() if each["fault"]}
    forget_s3_clients()
    assert result.exit_code == 1
    key = target.removeprefix(f"/{job_repo.bucket}/")
    size = job_repo.server.client().head_object(Bucket=job_repo.bucket, Key=key)["ContentLength"]
    (failure,) = json.loads(result.stdout)["failures"]
    assert failure["kind"] == "i/o"
    assert key in failure["reason"]
    assert f"only {size // 2} of {size} bytes arrived" in failure["reason"]
