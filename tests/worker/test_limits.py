"""Limits of time and memory, second attempts by kind of failure, isolation, and the failure budget."""

from __future__ import annotations

import json
import logging
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base.tests.mocks import DirectButlerRepo, DynamicConnectionConfig

from spark_butler.driver.backend import Backend
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import ResourceRequests, RunOptions
from spark_butler.model.outcomes import FailureKind, QuantumOutcome, RunResult
from tests.support.engine_harness import Case, Repo, make_graph, registered_files, stored_files
from tests.support.engine_tasks import TroubleConfig, TroubleTask

MakeRepo = Callable[[str], Repo]

_CCD = ("detector",)

# On a busy machine, a quantum needs seconds to reach its limit of memory.
_TIMEOUT = 6.0


def _connection(name: str, **more: Any) -> dict[str, DynamicConnectionConfig]:
    return {name: DynamicConnectionConfig(dataset_type_name=name, dimensions=list(_CCD), **more)}


def _run(
    helper: DirectButlerRepo,
    backend: Backend,
    troubles: Mapping[int, str],
    folder: Path,
    *,
    number: int = 0,
    sleep: float = 0.0,
    **options: Any,
) -> tuple[RunResult, dict[tuple[str, int], QuantumOutcome], dict[tuple[str, int], int]]:
    """Run three tasks in a row for each detector, the second of which gets into trouble."""
    helper.add_task("a", dimensions=_CCD, outputs=_connection("x"))
    config = TroubleConfig(folder=str(folder), number=number, sleep=sleep)
    config.troubles = {str(detector): trouble for detector, trouble in troubles.items()}
    helper.add_task(
        "b",
        task_class=TroubleTask,
        config=config,
        dimensions=_CCD,
        inputs=_connection("x"),
        outputs=_connection("y"),
    )
    helper.add_task("c", dimensions=_CCD, inputs=_connection("y"), outputs=_connection("z"))
    graph = make_graph(helper, Case(lambda each: None))
    result = execute_graph(graph, helper.butler, backend, RunOptions(**options))
    nodes = graph.quantum_only_xgraph.nodes

    def key(quantum_id: Any) -> tuple[str, int]:
        return nodes[quantum_id]["task_label"], nodes[quantum_id]["data_id"]["detector"]

    outcomes = {key(quantum_id): outcome for quantum_id, outcome in result.outcomes.items()}
    return result, outcomes, {key(quantum_id): 1 for quantum_id in result.blocked}


def _add_detectors(butler: Butler, n: int) -> None:
    known = {record.id for record in butler.query_dimension_records("detector", instrument="Cam1")}
    rows = [{"instrument": "Cam1", "id": i, "full_name": f"D{i}"} for i in range(1, n + 1) if i not in known]
    butler.registry.insertDimensionData("detector", *rows)


def _attempts(outcome: QuantumOutcome) -> list[FailureKind | None]:
    return [attempt.kind for attempt in outcome.attempts]


@pytest.mark.slow
def test_each_failure_kind_fails_only_its_quantum_and_is_named(
    spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path
) -> None:
    """A graph with segmentation faults, memory hogs, hangs and errors ends in time, with each cause told."""
    n = 40
    troubles = dict(enumerate(["segfault", "memory", "gulp", "hang", "raise"], start=1))
    troubles |= {20 + number: trouble for number, trouble in troubles.items()}
    request = {"requestMemory": 600, "memoryLimit": 700, "numberOfRetries": 1, "timeout": _TIMEOUT}
    times = {}
    for name, given in (("healthy", {}), ("troubled", troubles)):
        with make_repo(name).open() as helper:
            _add_detectors(helper.butler, n)
            start = time.monotonic()
            _result, outcomes, blocked = _run(
                helper,
                spark_backend,
                given,
                tmp_path,
                number=5000,
                resources=ResourceRequests.model_validate({"pipetask": {"b": request}}),
            )
            times[name] = time.monotonic() - start
            assert stored_files(helper.butler) == registered_files(helper.butler)
    failed = {key[1]: outcome for key, outcome in outcomes.items() if not outcome.succeeded}
    assert failed.keys() == troubles.keys()
    assert blocked.keys() == {("c", detector) for detector in troubles}
    assert sum(outcome.succeeded for outcome in outcomes.values()) == 3 * n - 2 * len(troubles)
    kinds = {
        "segfault": FailureKind.SIGNAL,
        "memory": FailureKind.MEMORY,
        "gulp": FailureKind.MEMORY,
        "hang": FailureKind.TIMEOUT,
        "raise": FailureKind.TASK,
    }
    for detector, trouble in troubles.items():
        outcome = failed[detector]
        assert outcome.kind is kinds[trouble], trouble
        assert outcome.report.taskLabel == "b"
        assert outcome.report.dataId["detector"] == detector
        if trouble == "segfault":
            assert outcome.report.exitCode == -signal.SIGSEGV
            assert "Segmentation fault" in outcome.reason
        if trouble == "memory":
            assert re.search(r"used more than its limit of 700 MiB; peak memory \d{3} MiB", outcome.reason)
            assert 700 * 2**20 < outcome.peak_memory < 2000 * 2**20
        if trouble == "hang":
            assert f"took longer than its limit of {_TIMEOUT:g} s" in outcome.reason
        if trouble in ("segfault", "memory", "hang"):
            assert f"Here comes detector {detector}." in outcome.log_tail
            assert outcome.peak_memory > 2**24
        assert _attempts(outcome) == ([FailureKind.MEMORY] if trouble in ("memory", "gulp") else [])
    # Two hangs on two slots, and what a loaded machine may take.
    assert times["troubled"] < 1.3 * times["healthy"] + 2 * (_TIMEOUT + 1.0) + 10.0


@pytest.mark.parametrize(
    ("temporary", "isolation"),
    [
        pytest.param((), "group", id="stored-group"),
        pytest.param(("x",), "quantum", id="temporary-quantum"),
        pytest.param((), "none", id="stored-none"),
        pytest.param(("x",), "group", id="temporary-group", marks=pytest.mark.slow),
        pytest.param((), "quantum", id="stored-quantum", marks=pytest.mark.slow),
        pytest.param(("x",), "none", id="temporary-none", marks=pytest.mark.slow),
    ],
)
def test_transient_failures_are_retried(
    isolation: str, temporary: tuple[str, ...], spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path
) -> None:
    with make_repo("repo").open() as helper:
        result, outcomes, _ = _run(
            helper,
            spark_backend,
            {1: "store", 2: "repeatable"},
            tmp_path,
            isolation=isolation,
            temporary=temporary,
        )
        assert stored_files(helper.butler) == registered_files(helper.butler)
        assert [outcome.kind for outcome in result.failed] == [FailureKind.REPEATABLE]
        assert result.failed[0].attempts == ()
        assert outcomes["b", 1].succeeded
        assert _attempts(outcomes["b", 1]) == [FailureKind.IO]
        assert "the store is away" in outcomes["b", 1].attempts[0].reason
        assert outcomes["c", 1].succeeded
        logs = helper.butler.get("b_log", instrument="Cam1", detector=1, collections="out/run")
    # Rubin keeps the log of an earlier attempt in that of the later one.
    (before,) = logs.extra["previous_attempts"] if isinstance(logs.extra, dict) else []
    assert "the store is away" in str(before)


def test_serial_backend_retries(make_repo: MakeRepo, tmp_path: Path) -> None:
    with make_repo("repo").open() as helper:
        result, outcomes, blocked = _run(
            helper, SerialBackend(), {1: "store", 2: "store for ever"}, tmp_path, retries=1, temporary=("x",)
        )
        assert _attempts(outcomes["b", 1]) == [FailureKind.IO]
        assert outcomes["c", 1].succeeded
        (failed,) = result.failed
        assert (failed.kind, _attempts(failed)) == (FailureKind.IO, [FailureKind.IO])
        assert list(blocked) == [("c", 2)]
        assert stored_files(helper.butler) == registered_files(helper.butler)


def test_killed_process_is_retried(spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path) -> None:
    with make_repo("repo").open() as helper:
        result, outcomes, _ = _run(helper, spark_backend, {1: "lost"}, tmp_path, temporary=("x", "y"))
        assert result.failed == []
        assert _attempts(outcomes["b", 1]) == [FailureKind.LOST]
        assert "killed by signal 9" in outcomes["b", 1].attempts[0].reason


def test_memory_grows_up_to_the_cap_and_is_remembered(
    spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="spark_butler")
    request = {"requestMemory": 300, "memoryMultiplier": 1.5, "memoryLimit": 2000, "numberOfRetries": 3}
    resources = ResourceRequests.model_validate({"pipetask": {"b": request}})
    repo = make_repo("repo")
    with repo.open() as helper:
        _, outcomes, _ = _run(helper, spark_backend, {1: "memory"}, tmp_path, number=500, resources=resources)
    first = outcomes["b", 1]
    assert first.succeeded
    assert len(first.attempts) >= 2
    assert first.memory_limit is not None
    assert first.memory_limit > 600 * 2**20
    kept = list(repo.root.rglob("memory.json"))
    learned = json.loads(kept[0].read_text())["b"]
    assert first.memory_limit <= learned <= 1100 * 2**20
    with Butler.from_config(str(repo.root), writeable=True) as butler:
        butler.removeRuns(["out/run"])
        helper = DirectButlerRepo(butler)
        _, outcomes, _ = _run(helper, spark_backend, {1: "memory"}, tmp_path, number=500, resources=resources)
    assert outcomes["b", 1].succeeded
    assert outcomes["b", 1].attempts == ()
    assert outcomes["b", 1].memory_limit == learned


def test_quantum_above_memory_share_runs_alone(
    spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path
) -> None:
    """A quantum that needs more than the machine has for two runs to its end, too."""
    with make_repo("repo").open() as helper:
        result, _, _ = _run(
            helper,
            spark_backend,
            {},
            tmp_path,
            resources=ResourceRequests(request_memory=2**30),
            group_by="quantum",
        )
        assert result.failed == []
        assert len(result.outcomes) == 6


@pytest.mark.parametrize(
    ("options", "n_failed", "reason"),
    [
        ({}, 10, ""),
        ({"fail_fast": True}, 1, "fail-fast"),
        ({"max_failures": "3"}, 3, "3 quanta have failed"),
        ({"max_failures": "10%"}, 3, "3 quanta have failed"),
        ({"max_same_failures": 4}, 4, "4 quanta of b in a row have failed alike"),
    ],
)
def test_failure_budget_ends_a_run(
    options: dict[str, Any], n_failed: int, reason: str, make_repo: MakeRepo, tmp_path: Path
) -> None:
    with make_repo("repo").open() as helper:
        _add_detectors(helper.butler, 10)
        result, _, blocked = _run(
            helper, SerialBackend(), dict.fromkeys(range(1, 11), "raise"), tmp_path, **options
        )
        # The one that is running when the run is stopped may come to its end.
        assert n_failed <= len(result.failed) <= min(10, n_failed + 2)
        assert (result.stopped_by is not None) == bool(reason)
        assert reason in result.stop_reason
        if not reason:
            assert len(blocked) == 10
        assert stored_files(helper.butler) == registered_files(helper.butler)
