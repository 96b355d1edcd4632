"""Costs of a lost worker or executor: the same outputs, and no more work than lost temporaries need."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.driver_programs import Driver, executor_of

if TYPE_CHECKING:
    from tests.support.clusters import Cluster

pytestmark = pytest.mark.slow

_CONF = {
    "spark.executor.memory": "512m",
    "spark.cores.max": "2",
    # Both executors must be there, so that the first stage is spread over them.
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "60s",
    "spark.locality.wait": "0",
    # As if they were on different hosts: what a lost executor had written is lost.
    "spark.shuffle.readHostLocalDisk": "false",
}


def _check(result: dict[str, Any], driver: Driver) -> None:
    """Check what holds after every run of `drivers.three_stages`."""
    assert result["n_failed"] == 0, result["failed"]
    assert result["equal"]
    assert result["quanta"] == result["outcomes"] == 13
    # Complete, stored, and no lost temporary needs them.
    assert driver.count("side") == {f"Cam1,{n}": 1 for n in (1, 2, 3, 4)}


def _start(folder: Path, cluster: Cluster, held: str) -> Any:
    return Driver.start(
        "three_stages", folder, cluster.address, hold=True, options={"held": held}, conf=_CONF
    )


def test_undisturbed_run(cluster: Cluster, tmp_path: Path) -> None:
    with _start(tmp_path, cluster, "b") as driver:
        driver.wait_for("b")
        (tmp_path / "hold").unlink()
        _check(driver.wait_for_result(), driver)
        assert all(count == 1 for label in "abc" for count in driver.count(label).values())


def test_killed_worker_in_the_second_stage(cluster: Cluster, tmp_path: Path) -> None:
    with _start(tmp_path, cluster, "b") as driver:
        os.kill(driver.wait_for("b").worker, signal.SIGKILL)
        (tmp_path / "hold").unlink()
        _check(driver.wait_for_result(), driver)
        assert driver.count("b") == {"Cam1": 2}
        assert driver.count("a") == {f"Cam1,{n}": 1 for n in (1, 2, 3, 4)}


def test_killed_executor_in_the_second_stage(cluster: Cluster, tmp_path: Path) -> None:
    with _start(tmp_path, cluster, "b") as driver:
        victim = executor_of(driver.wait_for("b").worker)
        lost = _made_on(driver, victim.pid)
        victim.kill()
        (tmp_path / "hold").unlink()
        _check(driver.wait_for_result(), driver)
        assert driver.count("b") == {"Cam1": 2}
        assert driver.count("a") == {f"Cam1,{n}": 1 + (f"Cam1,{n}" in lost) for n in (1, 2, 3, 4)}


def test_killed_executor_with_consumed_temporaries_reruns_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with _start(tmp_path, cluster, "b") as driver:
        busy = executor_of(driver.wait_for("b").worker)
        (idle,) = (each for each in cluster.executors if each.pid != busy.pid)
        idle.kill()
        (tmp_path / "hold").unlink()
        _check(driver.wait_for_result(), driver)
        assert driver.count("b") == {"Cam1": 1}
        assert driver.count("a") == {f"Cam1,{n}": 1 for n in (1, 2, 3, 4)}


def test_killed_executor_with_the_temporaries_of_both_stages(cluster: Cluster, tmp_path: Path) -> None:
    with _start(tmp_path, cluster, "c") as driver:
        driver.wait_for("c")
        (b,) = (each for each in driver.executions if each.label == "b")
        victim = executor_of(b.worker)
        lost = _made_on(driver, victim.pid)
        victim.kill()
        (tmp_path / "hold").unlink()
        _check(driver.wait_for_result(), driver)
        assert driver.count("b") == {"Cam1": 2}
        assert driver.count("a") == {f"Cam1,{n}": 1 + (f"Cam1,{n}" in lost) for n in (1, 2, 3, 4)}
        assert sum(driver.count("c").values()) <= 6


def _made_on(driver: Driver, executor: int) -> set[str]:
    """Data IDs of the first task's quanta that ran on an executor."""
    return {
        each.values
        for each in driver.executions
        if each.label == "a" and executor_of(each.worker).pid == executor
    }
