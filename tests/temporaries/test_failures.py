"""Failures, and the quanta they block; a lost dataset is never taken for one that was not made."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from spark_butler.driver.engine import plan_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.errors import EngineError
from spark_butler.model.options import RunOptions
from spark_butler.model.outcomes import FailureKind
from spark_butler.temporaries.shuffle import Kind

# On Spark too, but only where there is time.
_more = pytest.mark.parametrize(
    "backend", ["serial", pytest.param("spark", marks=pytest.mark.slow)], indirect=True
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

    from spark_butler.driver.backend import Backend
    from spark_butler.model.outcomes import RunResult
    from tests.support.scenarios import ScenarioRepo


_INSTRUMENT: dict[str, Any] = {"dimensions": ["instrument"]}
_NO_WORK: dict[str, Any] = {
    "fail_condition": "detector = 1",
    "fail_exception": "lsst.pipe.base.NoWorkFound",
}


def _gathered(name: str) -> dict[str, Any]:
    return {"dataset_type_name": name, "dimensions": ["detector"], "multiple": True}


def _of_instrument(name: str) -> dict[str, Any]:
    return {"dataset_type_name": name, "dimensions": ["instrument"]}


def _names(graph: PredictedQuantumGraph, quantum_ids: Any) -> set[tuple[str, int | str]]:
    nodes = graph.quantum_only_xgraph.nodes
    return {(nodes[q]["task_label"], nodes[q]["data_id"].required_values[-1]) for q in quantum_ids}


def _succeeded(graph: PredictedQuantumGraph, result: RunResult) -> set[tuple[str, int | str]]:
    return _names(graph, (q for q, outcome in result.outcomes.items() if outcome.succeeded))


def _diamond(scenario: ScenarioRepo, **fail: Any) -> None:
    """Three levels, with a short cut from the first to the last."""
    scenario.mock("a", {"i": "input"}, {"o": "a_out"}, **fail)
    scenario.mock("b", {"i": _gathered("a_out")}, {"o": "b_out"}, **_INSTRUMENT)
    scenario.mock("c", {"i": _of_instrument("b_out"), "j": "a_out"}, {"o": "c_end"})
    scenario.mock("d", {"i": "a_out"}, {"o": "d_end"})


_TEMPORARY = ("a_out", "b_out")


@pytest.mark.parametrize("group_by", ["fused", pytest.param("quantum", marks=pytest.mark.slow)])
def test_failure_blocks_consumers_in_other_groups(
    scenario: ScenarioRepo, backend: Backend, group_by: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _diamond(scenario, fail_condition="detector = 2")
    with caplog.at_level(logging.ERROR, "spark_butler"):
        graph, result = scenario.run(backend, temporary=_TEMPORARY, group_by=group_by)
    assert _names(graph, (outcome.quantum_id for outcome in result.failed)) == {("a", 2)}
    assert _names(graph, result.blocked) == {("b", "Cam1"), ("c", 1), ("c", 2), ("d", 2)}
    assert len(result.blocked) == len(set(result.blocked))
    assert _succeeded(graph, result) == {("a", 1), ("d", 1)}
    assert "4 quanta downstream will be skipped." in caplog.text
    assert not scenario.butler.query_datasets("c_end", collections=graph.header.output_run, explain=False)
    assert len(scenario.butler.query_datasets("d_end", collections=graph.header.output_run)) == 1


@_more
def test_failure_at_a_middle_level_spares_independent_quanta(
    scenario: ScenarioRepo, backend: Backend
) -> None:
    scenario.mock("a", {"i": "input"}, {"o": "a_out"})
    scenario.mock("b", {"i": "a_out"}, {"o": "b_out"}, fail_condition="detector = 1")
    scenario.mock("c", {"i": "b_out", "j": "a_out"}, {"o": "c_end"})
    graph, result = scenario.run(backend, temporary=_TEMPORARY, group_by="quantum")
    assert _succeeded(graph, result) == {("a", 1), ("a", 2), ("b", 2), ("c", 2)}
    assert _names(graph, result.blocked) == {("c", 1)}


def test_temporaries_are_relayed_across_levels(scenario: ScenarioRepo, backend: Backend) -> None:
    scenario.mock("a", {"i": "input"}, {"o": "a_out"})
    scenario.mock("b", {"i": _gathered("a_out")}, {"o": "b_out"}, **_INSTRUMENT)
    scenario.mock("c", {"i": _of_instrument("b_out"), "j": "a_out"}, {"o": "c_out"})
    scenario.mock(
        "d", {"i": _gathered("c_out"), "j": _gathered("a_out")}, {"o": "d_out"}, dimensions=["instrument"]
    )
    scenario.mock("e", {"i": "a_out", "j": _of_instrument("d_out"), "k": "c_out"}, {"o": "e_end"})
    found = scenario.compare(backend, ["e_end"], "quantum")
    assert len(found["e_end", ("Cam1", 2)]["quantum"]["inputs"]) == 3
    options = RunOptions(temporary=("[abcd]_out",), group_by="quantum")
    (unit,) = plan_graph(scenario.make_graph(), options).units
    assert [len(level) for level in unit.levels] == [2, 1, 2, 1, 2]


@_more
def test_stored_datasets_enter_leave_and_cross_a_unit(scenario: ScenarioRepo, backend: Backend) -> None:
    # Inside one unit c reads of a both a stored dataset and, by way of b, a temporary.
    scenario.mock("first", {"i": "input"}, {"o": "first_end"})
    scenario.mock("a", {"i": "first_end"}, {"o": "a_out", "p": "a_end"})
    scenario.mock("b", {"i": _gathered("a_out")}, {"o": "b_out"}, **_INSTRUMENT)
    scenario.mock("c", {"i": _of_instrument("b_out"), "j": "a_end", "k": "first_end"}, {"o": "c_end"})
    scenario.mock("last", {"i": "c_end", "j": "a_end"}, {"o": "last_end"})
    scenario.compare(backend, ["first_end", "a_end", "c_end", "last_end"], "fused", "quantum")


@_more
def test_missing_stored_dataset_of_the_same_unit(scenario: ScenarioRepo, backend: Backend) -> None:
    scenario.mock("a", {"i": "input"}, {"o": "a_end"}, **_NO_WORK)
    scenario.mock("b", {"i": "input", "j": {"dataset_type_name": "a_end", "minimum": 0}}, {"o": "b_out"})
    scenario.mock("c", {"i": "b_out", "j": {"dataset_type_name": "a_end", "minimum": 0}}, {"o": "c_end"})
    found = scenario.compare(backend, ["a_end", "c_end"], "fused", "quantum")
    assert not found["c_end", ("Cam1", 1)]["quantum"]["inputs"].get("j")
    assert found["c_end", ("Cam1", 2)]["quantum"]["inputs"]["j"]


@_more
def test_path_that_leaves_a_unit_and_comes_back(scenario: ScenarioRepo, backend: Backend) -> None:
    # a hands a temporary to d, which also needs c, which needs a, all that stored.
    scenario.mock("a", {"i": "input"}, {"o": "a_out", "p": "a_end"})
    scenario.mock("b", {"i": _gathered("a_end")}, {"o": "b_end"}, **_INSTRUMENT)
    scenario.mock("c", {"i": _of_instrument("b_end")}, {"o": "c_end"}, fail_condition="")
    scenario.mock("d", {"i": "a_out", "j": "c_end"}, {"o": "d_end"})
    scenario.compare(backend, ["a_end", "b_end", "c_end", "d_end"], "quantum")
    plan = plan_graph(scenario.make_graph(), RunOptions(temporary=("a_out",), group_by="quantum"))
    assert len(plan.units) == 1


def _drop(kind: Kind) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """Lose the first record of a kind on its way."""

    def wrap(receive: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def lossy(records: Any) -> Iterator[Any]:
            from spark_butler.temporaries.shuffle import hops_left, open_record

            lost = False
            kept = []
            for record in records:
                if not lost and hops_left(record) <= 1 and open_record(record).kind is kind:
                    lost = True
                else:
                    kept.append(record)
            return receive(iter(kept))

        return lossy

    return wrap


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Kind.CHUNK, "were sent but have not arrived"),
        (Kind.NOTICE, "received no completion notice from groups"),
        (Kind.WORK, "whose work item is missing"),
    ],
)
def test_lost_record_raises_error(
    scenario: ScenarioRepo, kind: Kind, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_butler.driver import serial
    from spark_butler.temporaries.shuffle import receive

    scenario.mock("a", {"i": "input"}, {"o": "a_out"})
    scenario.mock("b", {"i": {"dataset_type_name": "a_out", "minimum": 0}}, {"o": "b_end"})
    monkeypatch.setattr(serial, "receive", _drop(kind)(receive))
    with pytest.raises(EngineError, match=message):
        scenario.run(SerialBackend(), temporary=("a_out",), group_by="quantum")
    assert not scenario.butler.query_datasets("b_metadata", collections="run1", explain=False)


@pytest.mark.slow
def test_spark_reports_a_lost_record(
    scenario: ScenarioRepo, spark_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_butler.spark import backend as spark
    from tests.support import temporaries_tasks

    scenario.mock("a", {"i": "input"}, {"o": "a_out"})
    scenario.mock("b", {"i": {"dataset_type_name": "a_out", "minimum": 0}}, {"o": "b_end"})
    monkeypatch.setattr(spark, "run_next_level", temporaries_tasks.lose_chunks)
    graph, result = scenario.run(spark_backend, temporary=("a_out",), group_by="quantum")
    assert {label for label, _ in _names(graph, (o.quantum_id for o in result.failed))} == {"b"}
    for outcome in result.failed:
        assert outcome.kind is FailureKind.LOST
        assert "its worker was lost 3 times" in outcome.reason
        assert "were sent but have not arrived" in outcome.reason
    assert not scenario.butler.query_datasets("b_metadata", collections="run1", explain=False)


def test_temporary_that_cannot_be_serialized_fails_its_quantum(
    scenario: ScenarioRepo, backend: Backend
) -> None:
    start = {"dataset_type_name": "start", "mock_storage_class": True}
    scenario.real(
        "a", "make_unsendable", {"i": start}, {"o": ("a_out", "StructuredDataDict")}, deferred=["i"]
    )
    scenario.real("b", "describe", {"i": ("a_out", "StructuredDataDict")}, {"o": "b_end"})
    graph, result = scenario.run(backend, temporary=("a_out",), group_by="quantum")
    assert {label for label, _ in _names(graph, (o.quantum_id for o in result.failed))} == {"a"}
    assert {label for label, _ in _names(graph, result.blocked)} == {"b"}
    for outcome in result.failed:
        assert outcome.report.exceptionInfo is not None
        assert (
            "'StructuredDataDict' neither pickles nor can be written" in outcome.report.exceptionInfo.message
        )
