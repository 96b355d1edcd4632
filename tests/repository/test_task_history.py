"""The times of earlier quanta decide which quanta go first."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import DataCoordinate, DimensionUniverse
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import QuantumReport
from lsst.pipe.base.tests.mocks import DirectButlerRepo, DynamicConnectionConfig
from lsst.resources import ResourcePath

from spark_butler.driver import engine
from spark_butler.driver.scheduler import Scheduler
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.outcomes import QuantumOutcome
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch
from spark_butler.repository import task_history as learned
from spark_butler.repository.checks import store_roots
from spark_butler.repository.task_history import (
    find_costs,
    find_task_means,
    find_times,
    load_times,
    save_times,
)
from tests.support.engine_harness import Case, Repo, make_graph, run_engine

_UNIVERSE = DimensionUniverse()


def _outcome(
    label: str, detector: int, seconds: float, **more: object
) -> tuple[QuantumOutcome, DataCoordinate]:
    values: dict[str, Any] = {"instrument": "Cam1", "detector": detector}
    report = QuantumReport(dataId=values, taskLabel=label, exitCode=0)
    outcome = QuantumOutcome(uuid.uuid4(), QuantumAttemptStatus.SUCCESSFUL, report, wall_seconds=seconds)
    outcome = dataclasses.replace(outcome, **more)  # type: ignore[arg-type]
    return outcome, DataCoordinate.standardize(values, universe=_UNIVERSE)


def test_saved_times_are_loaded(tmp_path: Path) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    assert load_times(root) == {}
    outcomes = [_outcome("isr", 1, 50.0), _outcome("isr", 2, 30.0), _outcome("coadd", 1, 1.23456)]
    # Quanta that did not run have no time.
    outcomes += [_outcome("isr", 1, 0.0, recovered=True), _outcome("isr", 3, 0.0, skipped_existing=True)]
    save_times(root, find_times(outcomes))
    times = {("isr", "Cam1,1"): 50.0, ("isr", "Cam1,2"): 30.0, ("coadd", "Cam1,1"): 1.23}
    assert load_times(root) == times
    assert find_task_means(times) == {"isr": 40.0, "coadd": 1.23}
    # Newer times replace older ones of the same quanta.
    save_times(root, find_times([_outcome("isr", 2, 90.0)]))
    assert load_times(root) == {**times, ("isr", "Cam1,2"): 90.0}


def test_newest_times_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "_MOST_QUANTA", 3)
    root = ResourcePath(tmp_path, forceDirectory=True)
    for start in (0, 2):
        save_times(root, find_times([_outcome("isr", start + n, 100.0 + start) for n in range(2)]))
    assert load_times(root) == {
        ("isr", "Cam1,2"): 102.0,
        ("isr", "Cam1,3"): 102.0,
        ("isr", "Cam1,0"): 100.0,
    }


def test_file_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    root.join("spark-butler-learned/times.json").write(
        b'{"coadd": {"mean": 12.5, "quanta": {}}, "isr": {"mean": 40.0, "quanta": {"Cam1,1": 50.0}}}'
    )
    assert load_times(root) == {("isr", "Cam1,1"): 50.0}


def test_times_of_a_short_run_are_not_kept(tmp_path: Path) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    save_times(root, find_times([_outcome("isr", n, 1.0) for n in range(20)]))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b'["isr"]',
        b"{",
        b'{"isr": 3}',
        b'{"isr": {"mean": 1.0}}',
        b'{"isr": {"quanta": [1.0]}}',
        b'{"isr": {"quanta": {"Cam1,1": "long"}}}',
    ],
)
def test_invalid_times_file_only_warns(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    root.join("spark-butler-learned/times.json").write(content)
    assert load_times(root) == {}
    assert "times.json" in caplog.text


@pytest.fixture
def graph(make_repo: Callable[[str], Repo]) -> Iterator[PredictedQuantumGraph]:
    """A quantum for each detector, and one for each visit that reads theirs."""

    def build(helper: DirectButlerRepo) -> None:
        one = DynamicConnectionConfig(dataset_type_name="x", dimensions=["visit", "detector"])
        many = DynamicConnectionConfig(dataset_type_name="x", dimensions=["visit", "detector"], multiple=True)
        helper.add_task("a", dimensions=["visit", "detector"], outputs={"x": one})
        helper.add_task("b", dimensions=["visit"], inputs={"x": many})

    with make_repo("repo").open() as helper:
        yield make_graph(helper, Case(build))


def test_quantum_without_a_time_costs_the_median_of_the_others(graph: PredictedQuantumGraph) -> None:
    xgraph = graph.quantum_only_xgraph
    assert find_costs(xgraph, {("elsewhere", "Cam1,1"): 3.0}) == {}
    quanta = graph.quanta_by_task["a"]
    times = {}
    expected = dict.fromkeys(xgraph, 4.0)
    for (data_id, quantum_id), seconds in zip(quanta.items(), (1.0, 4.0, 70.0), strict=False):
        times["a", f"{data_id['instrument']},{data_id['detector']},{data_id['visit']}"] = seconds
        expected[quantum_id] = seconds
    assert len(quanta) > 3
    assert find_costs(xgraph, times) == expected


def test_costliest_path_is_scheduled_first() -> None:
    quanta = [uuid.UUID(int=n) for n in range(5)]
    # Three short ones in a row, and a long one with one behind it.
    edges = [(quanta[0], quanta[1]), (quanta[1], quanta[2]), (quanta[3], quanta[4])]
    labels = dict(zip(quanta, "aaabc", strict=True))
    costs = {quanta[3]: 10.0, quanta[4]: 0.5}
    plan = cut_graph(GraphSketch(labels, edges, costs=costs), group_by="quantum")
    remaining = {group.quanta[0].int: group.remaining for group in plan.groups}
    assert remaining == {0: 3.0, 1: 2.0, 2: 1.0, 3: 10.5, 4: 0.5}


def test_next_run_uses_times_of_previous_run(
    make_repo: Callable[[str], Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_WORTH_SECONDS", 0.0)
    monkeypatch.setattr(engine, "_WORTH_ORDERING", 1)
    seen: list[Mapping[str, float]] = []

    class Observer(Scheduler):
        def __init__(self, *args: Any, **kwargs: Any):
            seen.append(kwargs["times"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(engine, "Scheduler", Observer)
    kept = b"{}"
    for name in ("first", "second"):
        with make_repo(name).open() as helper:
            file = store_roots(helper.butler)[0].join("spark-butler-learned/times.json")
            file.write(kept)
            run_engine(helper, Case(lambda h: h.add_task("a", dimensions=["detector"])), SerialBackend())
            kept = file.read()
    assert seen[0] == {}
    assert seen[1].keys() == {"a"}
    assert 0 < seen[1]["a"] < 60
