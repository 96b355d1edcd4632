"""The time that slots spend on temporaries between quanta is measured, and so is what they import."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

import pytest

from spark_butler.driver.engine import execute_graph
from spark_butler.model.options import RunOptions
from spark_butler.report import RunInfo, RunRecord, make_content

if TYPE_CHECKING:
    from spark_butler.driver.backend import Backend
    from tests.support.scenarios import ScenarioRepo

_START = {"dataset_type_name": "start", "mock_storage_class": True}
_MEGABYTES = 64


def _run(scenario: ScenarioRepo, backend: Backend, **options: Any) -> dict[str, Any]:
    """Run a graph and return the part of its report that is about time."""
    graph, record = scenario.make_graph(), RunRecord()
    started = datetime.datetime.now(datetime.UTC)
    result = execute_graph(graph, scenario.butler, backend, RunOptions(**options), observer=record)
    assert not result.failed
    run = RunInfo("run", "repo", slots=backend.slots, started=started)
    time_: dict[str, Any] = make_content(run, record, state="succeeded")["time"]
    return time_


def _add_gather(scenario: ScenarioRepo) -> None:
    """Large arrays from several groups to one, small ones from there to several."""
    size = {"size": _MEGABYTES * 2**20 // 8}
    large = ("large", "NumpyArray")
    scenario.real("make", "make_large", {"i": _START}, {"o": large}, deferred=["i"], options=size)
    many = {"dataset_type_name": "large", "storage_class": "NumpyArray", "dimensions": ["detector"]}
    sums = {"dataset_type_name": "sums", "dimensions": ["instrument"]}
    scenario.real(
        "gather", "gather", {"i": {**many, "multiple": True}}, {"o": sums}, dimensions=["instrument"]
    )
    scenario.real("end", "describe", {"i": sums}, {"o": "end"})


def test_time_of_temporaries_that_cross_stages_is_shuffle(scenario: ScenarioRepo, backend: Backend) -> None:
    _add_gather(scenario)
    began = time.time()
    spent = _run(scenario, backend, temporary=("large", "sums"), group_by="quantum")
    seconds = time.time() - began
    slots = spent["slots"]
    # Memory is copied at no more than 20 GB/s here, once to send and once to receive.
    assert 2 * 2 * _MEGABYTES / 20_000 < slots["shuffle"] < seconds * backend.slots
    parts = ("import", "read", "compute", "write", "shuffle", "not_split", "idle")
    assert sum(slots[name] for name in parts) == pytest.approx(slots["available"], abs=0.02)
    assert min(slots[name] for name in parts) >= 0
    assert sum(spent["shares"].values()) == pytest.approx(1.0, abs=0.001)


@pytest.mark.parametrize("backend", ["serial", pytest.param("spark", marks=pytest.mark.slow)], indirect=True)
def test_run_without_temporaries_has_no_shuffle(scenario: ScenarioRepo, backend: Backend) -> None:
    _add_gather(scenario)
    slots = _run(scenario, backend)["slots"]
    assert slots["shuffle"] == 0.0
    assert slots["compute"] > 0.0
    assert slots["idle"] == pytest.approx(slots["between_quanta"] - slots["import"], abs=0.002)
