"""Spark settings that clusters have for other users: runs give the same results with them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.clusters import Cluster
from tests.support.driver_programs import Driver, executor_of

pytestmark = [pytest.mark.slow, pytest.mark.jvm]


_DECOMMISSION = {
    "spark.decommission.enabled": "true",
    "spark.storage.decommission.enabled": "true",
    "spark.storage.decommission.shuffleBlocks.enabled": "true",
    "spark.executor.memory": "600m",
}
# An executor without work goes, and gives its shuffle files to another one.
_DYNAMIC = {
    **_DECOMMISSION,
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.enabled": "false",
    "spark.dynamicAllocation.executorIdleTimeout": "2s",
    "spark.dynamicAllocation.schedulerBacklogTimeout": "1s",
    "spark.dynamicAllocation.initialExecutors": "2",
    "spark.executor.cores": "1",
}


def _assert_complete(result: dict[str, Any]) -> None:
    assert result["equal"]
    assert not result["failed"]
    assert result["outcomes"] == result["quanta"]


def _wait(condition: Callable[[], bool], driver: Driver) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"{driver.executions}\n{driver.log}"
        time.sleep(0.2)


def test_cores_of_tasks_fresh_workers_and_fair_scheduling(tmp_path: Path) -> None:
    conf = {
        "spark.task.cpus": "2",
        "spark.python.worker.reuse": "false",
        "spark.scheduler.mode": "FAIR",
    }
    with Driver.start("three_stages", tmp_path, "local[2]", options={"compare": True}, conf=conf) as driver:
        result = driver.wait_for_result()
    _assert_complete(result)


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
        _wait(lambda: len({each.worker for each in driver.executions if each.label == "b"}) > 1, driver)
        (driver.folder / "hold").unlink()
        result = driver.wait_for_result()
    _assert_complete(result)


def test_executors_that_dynamic_allocation_removes_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "run").mkdir()
    with (
        Cluster.start(tmp_path / "cluster") as cluster,
        Driver.start(
            *("three_stages", tmp_path / "run", cluster.address),
            hold=True,
            options={"held": "b"},
            conf=_DYNAMIC,
        ) as driver,
    ):
        _wait(lambda: len(cluster.executors) == 2, driver)
        held = driver.wait_for("b")
        _wait(lambda: cluster.executors == [executor_of(held.worker)], driver)
        (driver.folder / "hold").unlink()
        _assert_complete(driver.wait_for_result())


@pytest.mark.skipif(sys.platform != "linux", reason="workers of a cluster are decommissioned by SIGPWR")
def test_worker_that_is_decommissioned_under_a_quantum(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "run").mkdir()
    options = {"SPARK_WORKER_OPTS": "-Dspark.decommission.enabled=true"}
    with (
        Cluster.start(tmp_path / "cluster", environment=options) as cluster,
        Driver.start(
            *("three_stages", tmp_path / "run", cluster.address),
            hold=True,
            options={"held": "b"},
            conf=_DECOMMISSION,
        ) as driver,
    ):
        executor = executor_of(driver.wait_for("b").worker)
        worker = psutil.Process(executor.ppid())
        worker.send_signal(signal.SIGPWR)
        logs = [cluster.folder / f"worker{n}" for n in range(2)]
        _wait(lambda: any("ecommission" in log.read_text() for log in logs), driver)
        (driver.folder / "hold").unlink()
        _assert_complete(driver.wait_for_result())
