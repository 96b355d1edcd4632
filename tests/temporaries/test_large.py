"""Objects that are large, and many: what they take of the memory of workers, with Spark's default heap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.driver_programs import Driver

pytestmark = [pytest.mark.slow, pytest.mark.jvm]

_CLUSTER_CONF = {"spark.cores.max": "2", "spark.executor.memory": "1g"}


def _run(scenario: str, folder: Path, master: str, options: dict[str, Any]) -> dict[str, Any]:
    conf = {} if master.startswith("local") else _CLUSTER_CONF
    with Driver.start(scenario, folder, master, options=options, conf=conf) as driver:
        result = driver.wait_for_result(900)
    assert not result["n_failed"], result["failed"]
    assert result["quanta"] == result["outcomes"]
    return result


@pytest.fixture(params=["local[2]", "cluster"])
def master(request: pytest.FixtureRequest) -> str:
    """Address of each kind of Spark in turn."""
    if request.param == "cluster":
        return str(request.getfixturevalue("cluster").address)
    return str(request.param)


def test_object_of_two_and_a_half_gigabytes_passes_a_shuffle(
    master: str, tmp_path: Path, record_testsuite_property: Any
) -> None:
    nbytes = 2_500_000_000
    result = _run("one_large", tmp_path, master, {"bytes": nbytes, "grain": "quantum"})
    end = result["ends"]["probe_end"]
    record_testsuite_property("wall", result["wall"])
    record_testsuite_property("memory", end["memory"])
    assert end["found"][:3] == [nbytes, 1.0, 2.0]
    assert max(end["memory"]) < 1.25 * nbytes


def test_gather_needs_memory_of_its_live_set(
    master: str, tmp_path: Path, record_testsuite_property: Any
) -> None:
    count, nbytes = 100, 16_000_000
    result = _run("many_large", tmp_path, master, {"count": count, "bytes": nbytes})
    end = result["ends"]["gather_end"]
    record_testsuite_property("wall", result["wall"])
    record_testsuite_property("memory", end["memory"])
    assert end["bytes"] == count * nbytes
    # Of the process that runs the quantum, and of the worker that it was forked from.
    assert max(end["memory"]) < 1.25 * count * nbytes
