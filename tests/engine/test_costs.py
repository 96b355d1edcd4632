"""What is known of the times of quanta decides which of them go first."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Case, Repo, make_graph, run_engine
from lsst.daf.butler import DataCoordinate, DimensionUniverse, StorageClass
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.formatters.json import JsonFormatter
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import QuantumReport
from lsst.pipe.base.tests.mocks import DirectButlerRepo, DynamicConnectionConfig
from lsst.resources import ResourcePath

from spark_butler import engine, learned
from spark_butler.backends import SerialBackend
from spark_butler.costs import estimate_costs
from spark_butler.dispatch import Dispatcher
from spark_butler.learned import NO_TIMES, Times, find_times, load_times, save_times
from spark_butler.outcomes import QuantumOutcome
from spark_butler.plan import GraphSketch, cut_graph
from spark_butler.repository import store_roots

_UNIVERSE = DimensionUniverse()


def _outcome(
    label: str, detector: int, seconds: float, **more: object
) -> tuple[QuantumOutcome, DataCoordinate]:
    values = {"instrument": "Cam1", "detector": detector}
    report = QuantumReport(dataId=values, taskLabel=label, exitCode=0)
    outcome = QuantumOutcome(uuid.uuid4(), QuantumAttemptStatus.SUCCESSFUL, report, wall_seconds=seconds)
    outcome = dataclasses.replace(outcome, **more)  # type: ignore[arg-type]
    return outcome, DataCoordinate.standardize(values, universe=_UNIVERSE)


def test_times_of_a_run_are_read_by_the_next(tmp_path: Path) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    assert load_times(root) == NO_TIMES
    outcomes = [_outcome("isr", 1, 50.0), _outcome("isr", 2, 30.0), _outcome("coadd", 1, 1.23456)]
    # What did not run says nothing.
    outcomes += [_outcome("isr", 1, 0.0, recovered=True), _outcome("isr", 3, 0.0, skipped_existing=True)]
    save_times(root, find_times(outcomes))
    times = load_times(root)
    assert times.means == {"isr": 40.0, "coadd": 1.23}
    (_, first), (_, second) = outcomes[:2]
    assert (times.of("isr", first), times.of("isr", second)) == (50.0, 30.0)
    assert times.of("isr", outcomes[-1][1]) == 40.0
    assert times.of("other", first) is None
    # What is newer counts; what is older remains.
    save_times(root, find_times([_outcome("isr", 2, 90.0)]))
    times = load_times(root)
    assert times.means == {"isr": 90.0, "coadd": 1.23}
    assert (times.of("isr", first), times.of("isr", second)) == (50.0, 90.0)


def test_times_of_the_last_quanta_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "_MOST_QUANTA", 3)
    root = ResourcePath(tmp_path, forceDirectory=True)
    for start in (0, 2):
        save_times(root, find_times([_outcome("isr", start + n, 100.0 + start) for n in range(2)]))
    assert load_times(root).quanta == {"isr": {"Cam1,2": 102.0, "Cam1,3": 102.0, "Cam1,0": 100.0}}


def test_times_of_a_short_run_are_not_kept(tmp_path: Path) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    save_times(root, find_times([_outcome("isr", n, 1.0) for n in range(20)]))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b'["isr"]', b"{", b'{"isr": 3}', b'{"isr": {"mean": "long", "quanta": {}}}']
)
def test_file_that_is_no_table_of_times_only_warns(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    root.join("spark-butler-learned/times.json").write(content)
    assert load_times(root) == NO_TIMES
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


def _by_label(graph: PredictedQuantumGraph, costs: Mapping[uuid.UUID, float]) -> dict[str, set[float]]:
    return {
        label: {round(costs[quantum_id], 9) for quantum_id in quanta.values()}
        for label, quanta in graph.quanta_by_task.items()
    }


def test_known_times_are_costs(graph: PredictedQuantumGraph) -> None:
    costs = estimate_costs(graph, graph.quantum_only_xgraph, Times({"a": 3.0, "b": 7.0}), {})
    assert _by_label(graph, costs) == {"a": {3.0}, "b": {7.0}}


def test_costs_of_unknown_tasks_grow_with_their_inputs(graph: PredictedQuantumGraph) -> None:
    bipartite = graph.bipartite_xgraph
    raws = {
        dataset_id
        for quantum_id in graph.quanta_by_task["a"].values()
        for dataset_id in bipartite.predecessors(quantum_id)
    }
    records = {"store": DatastoreRecordData({each: {"table": [_file(100)]} for each in raws})}
    # Each visit has two detectors, and what is still to be made counts as much as a raw.
    costs = estimate_costs(graph, graph.quantum_only_xgraph, NO_TIMES, records)
    (a,), (b,) = _by_label(graph, costs).values()
    assert b == pytest.approx(2 * a)
    assert sum(costs.values()) == pytest.approx(len(costs))
    # With what is known of one, the other is given its scale.
    costs = estimate_costs(graph, graph.quantum_only_xgraph, Times({"a": 30.0}), records)
    assert _by_label(graph, costs) == {"a": {30.0}, "b": {30.0}}


def _file(size: int) -> StoredFileInfo:
    return StoredFileInfo(JsonFormatter, "raw.json", StorageClass("Image"), None, None, size)


def test_costliest_path_goes_first() -> None:
    quanta = [uuid.UUID(int=n) for n in range(5)]
    # Three short ones in a row, and a long one with one behind it.
    edges = [(quanta[0], quanta[1]), (quanta[1], quanta[2]), (quanta[3], quanta[4])]
    labels = dict(zip(quanta, "aaabc", strict=True))
    costs = {quanta[3]: 10.0, quanta[4]: 0.5}
    plan = cut_graph(GraphSketch(labels, edges, costs=costs), group_by="quantum")
    remaining = {group.quanta[0].int: group.remaining for group in plan.groups}
    assert remaining == {0: 3.0, 1: 2.0, 2: 1.0, 3: 10.5, 4: 0.5}


def test_run_keeps_its_times_and_the_next_reads_them(
    make_repo: Callable[[str], Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_WORTH_SECONDS", 0.0)
    monkeypatch.setattr(engine, "_WORTH_ORDERING", 1)
    seen: list[Mapping[str, float]] = []

    class Observer(Dispatcher):
        def __init__(self, *args: Any, **kwargs: Any):
            seen.append(kwargs["times"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(engine, "Dispatcher", Observer)
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
