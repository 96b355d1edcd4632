"""Spark settings that clusters have for other users: runs give the same results with them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.clusters import Cluster
from tests.support.driver_programs import Driver

pytestmark = [pytest.mark.slow, pytest.mark.jvm]


def test_cores_of_tasks_fresh_workers_and_fair_scheduling(tmp_path: Path) -> None:
    conf = {
        "spark.task.cpus": "2",
        "spark.python.worker.reuse": "false",
        "spark.scheduler.mode": "FAIR",
    }
    with Driver.start("three_stages", tmp_path, "local[2]", options={"compare": True}, conf=conf) as driver:
        result = driver.wait_for_result()
    assert result["equal"]
    assert not result["failed"]
    assert result["outcomes"] == result["quanta"]


def test_speculative_copy_of_a_task_gives_the_same_result(tmp_path: Path) -> None:
    conf = {
        "spark.speculation": "true",
        "spark.speculation.interval": "100ms",
        "spark.speculation.task.duration.threshold": "2s",
        "spark.executor.memory": "600m",
    }
    (tmp_path / "cluster").mkdir()
    (tmp_path / "run").mkdir()
    with (
        Cluster.start(tmp_path / "cluster", several_hosts=True) as cluster,
        Driver.start(
            "three_stages", tmp_path / "run", cluster.address, hold=True, options={"held": "b"}, conf=conf
        ) as driver,
    ):
        driver.wait_for("b")
        deadline = time.monotonic() + 120
        while len({each.worker for each in driver.executions if each.label == "b"}) < 2:
            assert time.monotonic() < deadline, f"no copy was started; {driver.executions}\n{driver.log}"
            time.sleep(0.2)
        (driver.folder / "hold").unlink()
        result = driver.wait_for_result()
    assert result["equal"]
    assert not result["failed"]
    assert result["outcomes"] == result["quanta"]
