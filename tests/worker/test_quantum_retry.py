"""Failures of every kind, and what second attempts make of them."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import ExecutionStatus
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicConnectionConfig,
    DynamicTestPipelineTaskConfig,
)

from spark_butler.driver.backend import Backend
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.errors import EngineError
from spark_butler.model.options import RunOptions
from spark_butler.model.outcomes import QuantumOutcome, RunResult
from spark_butler.repository.output_ingest import Ingester
from tests.support.engine_harness import (
    RUN,
    Case,
    Repo,
    make_graph,
    observe,
    registered_files,
    run_reference,
    snapshot,
    stored_files,
)
from tests.support.engine_tasks import (
    BadConstructorTask,
    CallConfig,
    CrashAfterPutTask,
    ExitTask,
    FailOnceTask,
    HarakiriTask,
    NoLogTask,
)

_CCD = ("visit", "detector")
_FAIL = "visit=1 AND detector=2"

MakeRepo = Callable[[str], Repo]

# On Spark too, but only where there is time.
_more = pytest.mark.parametrize(
    "backend", ["serial", pytest.param("spark", marks=pytest.mark.slow)], indirect=True
)


def _config(condition: str = _FAIL, **more: Any) -> CallConfig:
    return CallConfig(fail_condition=condition, **more)


def _chain(helper: DirectButlerRepo, task_class: type, config: CallConfig) -> None:
    """Three tasks in a row, the second a special one."""
    helper.add_task("a", dimensions=_CCD)
    helper.add_task("b", task_class=task_class, config=config, dimensions=_CCD)
    helper.add_task("c", dimensions=_CCD)


def _star(
    helper: DirectButlerRepo,
    task_class: type,
    config: Callable[[], CallConfig],
    *,
    maker: tuple[type, CallConfig] | None = None,
    n_special: int = 1,
) -> None:
    """One maker ``a`` with three readers of its output in the same group; the first of them are special."""
    maker = maker or (ExitTask, _config("visit=9"))
    helper.add_task("a", task_class=maker[0], config=maker[1], dimensions=_CCD, outputs=_connection("x"))
    for n in (1, 2, 3):
        special: dict[str, Any] = {"task_class": task_class, "config": config()} if n <= n_special else {}
        outputs = _connection(f"y{n}")
        helper.add_task(f"b{n}", dimensions=_CCD, inputs=_connection("x"), outputs=outputs, **special)


def _connection(name: str) -> dict[str, DynamicConnectionConfig]:
    return {name: DynamicConnectionConfig(dataset_type_name=name, dimensions=list(_CCD))}


def _run(
    helper: DirectButlerRepo, graph: PredictedQuantumGraph, backend: Backend, **options: Any
) -> RunResult:
    return execute_graph(graph, helper.butler, backend, RunOptions(**options))


def _by_task(graph: PredictedQuantumGraph, result: RunResult) -> dict[tuple[str, int, int], QuantumOutcome]:
    nodes = graph.quantum_only_xgraph.nodes
    return {
        (
            nodes[quantum_id]["task_label"],
            nodes[quantum_id]["data_id"]["visit"],
            nodes[quantum_id]["data_id"]["detector"],
        ): outcome
        for quantum_id, outcome in result.outcomes.items()
    }


def _assert_consistent(butler: Butler, graph: PredictedQuantumGraph) -> dict[Any, Any]:
    """Every file is registered, and everything registered can be read (which also checks its size)."""
    assert stored_files(butler) == registered_files(butler)
    return snapshot(butler, graph)


@pytest.fixture
def no_child_left() -> Iterator[None]:
    """Check that no processes of quanta outlive a test."""
    yield
    deadline = time.monotonic() + 5
    while left := [process for process in _grandchildren() if _is_quantum(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _grandchildren() -> list[psutil.Process]:
    return list(psutil.Process().children(recursive=True))


def _is_quantum(process: psutil.Process) -> bool:
    """Whether a process was forked by a Spark worker, which was forked by the daemon."""
    try:
        lines = [each.cmdline() for each in (process, *process.parents()[:2])]
    except psutil.NoSuchProcess:
        return False
    return lines[0] != [] and lines.count(lines[0]) == 3


@pytest.mark.parametrize(
    ("way", "status"),
    [
        ("os._exit", 0),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("sys.exit", 3), ("os._exit", 7), ("sys.exit", 0), ("abandon", 0))
        ),
    ],
)
def test_sys_exit_in_task_is_a_failure(
    way: str, status: int, spark_backend: Backend, make_repo: MakeRepo, no_child_left: None
) -> None:
    with make_repo("repo").open() as helper:
        case = Case(lambda h: _chain(h, ExitTask, _config(way=way, number=status)))
        graph = make_graph(helper, case)
        start = time.monotonic()
        result = _run(helper, graph, spark_backend)
        assert time.monotonic() - start < 45
        (failed,) = result.failed
        assert failed.report.exitCode == (-signal.SIGKILL if way == "abandon" else status)
        assert failed.report.status is ExecutionStatus.FAILURE
        assert len(result.blocked) == 1
        assert len(result.outcomes) == 11
        _assert_consistent(helper.butler, graph)
    for process in _grandchildren():
        if way == "abandon" and process.ppid() == 1:
            process.kill()


def test_exit_of_a_task_does_not_end_a_serial_run(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        case = Case(lambda h: _chain(h, ExitTask, _config(way="sys.exit", number=3)))
        graph = make_graph(helper, case)
        result = _run(helper, graph, SerialBackend())
        assert [outcome.report.exitCode for outcome in result.failed] == [3]


def test_error_of_task_constructor_is_reported(backend: Backend, make_repo: MakeRepo, tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, BadConstructorTask, _config(folder=str(armed)))))
        armed.mkdir()
        result = _run(helper, graph, backend)
        assert len(result.failed) == len(result.blocked) == 4
        for outcome in result.failed:
            info = outcome.report.exceptionInfo
            assert info is not None
            assert info.className == "ArithmeticError"
            assert "this task can't be made" in info.message
            assert "this task can't be made" in outcome.traceback


def test_outputs_written_before_a_crash_are_in_the_registry(
    spark_backend: Backend, make_repo: MakeRepo, no_child_left: None
) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, CrashAfterPutTask, _config())))
        result = _run(helper, graph, spark_backend)
        (failed,) = result.failed
        assert failed.status is QuantumAttemptStatus.ABORTED
        contents = _assert_consistent(helper.butler, graph)
        assert contents["dataset_auto2", ("Cam1", 2, 1)][1]["output_connection_name"] == "first"
        assert ("b_metadata", ("Cam1", 2, 1)) not in contents


@_more
def test_resume_reruns_quantum_without_log(backend: Backend, make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, NoLogTask, _config())))
        result = _run(helper, graph, backend)
        (failed,) = result.failed
        assert "no log today" in failed.reason
        contents = _assert_consistent(helper.butler, graph)
    key = ("Cam1", 2, 1)
    assert ("dataset_auto2", key) in contents
    # Metadata is what says that a quantum has succeeded.
    assert ("b_metadata", key) not in contents
    assert ("b_log", key) not in contents


@pytest.mark.parametrize(
    "temporary", [pytest.param((), marks=pytest.mark.slow), ("x",)], ids=["stored", "temporary"]
)
def test_killed_quantum_leaves_the_others_of_its_group_alone(
    temporary: tuple[str, ...], spark_backend: Backend, make_repo: MakeRepo, no_child_left: None
) -> None:
    case = Case(lambda h: _star(h, HarakiriTask, _config))
    with make_repo("reference").open() as helper:
        expected = run_reference(
            helper, dataclasses.replace(case, build=lambda h: _star(h, ExitTask, lambda: _config("visit=9")))
        )
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, case)
        result = _run(helper, graph, spark_backend, temporary=temporary)
        (failed,) = result.failed
        assert (failed.report.taskLabel, failed.report.exitCode) == ("b1", -signal.SIGKILL)
        assert result.blocked == []
        assert len(result.outcomes) == 16
        contents = _assert_consistent(helper.butler, graph)
    gone = {("y1", ("Cam1", 2, 1)), ("b1_log", ("Cam1", 2, 1)), ("b1_metadata", ("Cam1", 2, 1))}
    kept = {
        key: value for key, value in expected.datasets.items() if key not in gone and key[0] not in temporary
    }
    assert contents.keys() == kept.keys()
    for name in ("y1", "y2", "y3"):
        assert {k: v for k, v in contents.items() if k[0] == name} == {
            k: v for k, v in kept.items() if k[0] == name
        }


def test_consumers_fail_when_lost_temporary_cannot_be_rebuilt(
    spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path
) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    maker = FailOnceTask, _config("visit>0", number=2, folder=str(counts))

    def build(helper: DirectButlerRepo) -> None:
        _star(helper, HarakiriTask, lambda: _config(folder=str(counts)), maker=maker, n_special=3)

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(build))
        result = _run(helper, graph, spark_backend, temporary=("x",), retries=0)
        outcomes = _by_task(graph, result)
        failed = {key: outcome for key, outcome in outcomes.items() if not outcome.succeeded}
        assert failed.keys() == {("b1", 1, 2), ("b2", 1, 2), ("b3", 1, 2)}
        texts = [
            outcome.report.exceptionInfo and outcome.report.exceptionInfo.message
            for outcome in failed.values()
        ]
        assert sorted("a failed when it was run again to make it" in str(text) for text in texts) == [
            False,
            True,
            True,
        ]
        assert sorted(outcome.report.exitCode or 0 for outcome in failed.values()) == [-signal.SIGKILL, 1, 1]
        assert outcomes["a", 1, 2].succeeded
        _assert_consistent(helper.butler, graph)


def test_timeout_kills_only_the_quantum(
    spark_backend: Backend, make_repo: MakeRepo, no_child_left: None
) -> None:
    with make_repo("repo").open() as helper:
        case = Case(lambda h: _star(h, ExitTask, lambda: _config("visit=9", sleep=60.0)))
        graph = make_graph(helper, case)
        start = time.monotonic()
        result = _run(helper, graph, spark_backend, timeout=4.0)
        assert time.monotonic() - start < 55
        assert {(o.report.taskLabel, o.timed_out) for o in result.failed} == {("b1", True)}
        assert len(result.failed) == 4
        assert sum(outcome.succeeded for outcome in result.outcomes.values()) == 12
        _assert_consistent(helper.butler, graph)


def test_fail_fast_stops_at_once_and_keeps_what_is_done(
    spark_backend: Backend, make_repo: MakeRepo, no_child_left: None
) -> None:
    def build(helper: DirectButlerRepo) -> None:
        helper.add_task("a", config=_config("visit=1 AND detector=1"), dimensions=_CCD)
        helper.add_task("b", config=DynamicTestPipelineTaskConfig(sleep=20.0), dimensions=_CCD)

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(build))
        start = time.monotonic()
        result = _run(helper, graph, spark_backend, fail_fast=True)
        assert time.monotonic() - start < 35
        assert result.stopped_by is not None
        assert result.stopped_by.report.taskLabel == "a"
        assert len(result.outcomes) < 8


def test_serial_backend_can_be_used_again_after_fail_fast(make_repo: MakeRepo) -> None:
    backend = SerialBackend()
    with make_repo("one").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, ExitTask, _config("visit>0", way="sys.exit"))))
        assert _run(helper, graph, backend, fail_fast=True).stopped_by is not None
    with make_repo("two").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, ExitTask, _config("visit=9"))))
        assert len(_run(helper, graph, backend).outcomes) == 12


@pytest.mark.parametrize(
    ("backend", "clobber", "temporary"),
    [
        pytest.param("serial", False, ("dataset_auto1",), id="serial-skip-temporary"),
        pytest.param("serial", True, (), id="serial-clobber-stored"),
        pytest.param("spark", False, (), id="spark-skip-stored"),
        pytest.param("spark", True, ("dataset_auto1",), id="spark-clobber-temporary"),
        pytest.param("serial", False, (), id="serial-skip-stored", marks=pytest.mark.slow),
        pytest.param(
            "serial", True, ("dataset_auto1",), id="serial-clobber-temporary", marks=pytest.mark.slow
        ),
        pytest.param("spark", False, ("dataset_auto1",), id="spark-skip-temporary", marks=pytest.mark.slow),
        pytest.param("spark", True, (), id="spark-clobber-stored", marks=pytest.mark.slow),
    ],
    indirect=["backend"],
)
def test_resume_after_failures(
    temporary: tuple[str, ...], clobber: bool, backend: Backend, make_repo: MakeRepo, tmp_path: Path
) -> None:
    """The second attempt ends as a run without failures would have, and does only what is left."""
    counts = tmp_path / "counts"
    counts.mkdir()
    config = _config("visit=1 AND detector=2", number=-1, folder=str(counts))
    case = Case(lambda h: _chain(h, FailOnceTask, config))
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, case)
        first = _run(helper, graph, backend, temporary=temporary)
        assert [outcome.report.taskLabel for outcome in first.failed] == ["b"]
        assert len(first.blocked) == 1
        helper.butler.registry.refresh()
        before = {ref.id for ref in helper.butler.query_all_datasets(RUN)}
        # Without leave to clobber, the log of the failed attempt is in the way, as for pipetask.
        second = _run(
            helper, graph, backend, temporary=temporary, skip_existing=True, clobber_outputs=clobber
        )
        outcomes = _by_task(graph, second)
        again = {("a", 1, 2)} if temporary else set()
        if clobber:
            assert not second.failed
            assert outcomes.keys() == {("b", 1, 2), ("c", 1, 2)} | again
            contents = _assert_consistent(helper.butler, graph)
            assert {name for name, data_id in contents if data_id == ("Cam1", 2, 1)} == {
                f"{task}_{kind}" for task in "abc" for kind in ("log", "metadata")
            } | ({"dataset_auto1", "dataset_auto2", "dataset_auto3"} - set(temporary))
            assert before <= {ref.id for ref in helper.butler.query_all_datasets(RUN)}
        else:
            assert [outcome.report.taskLabel for outcome in second.failed] == ["b"]
            assert outcomes.keys() == {("b", 1, 2)} | again
            _assert_consistent(helper.butler, graph)


@_more
def test_second_run_without_options_refuses_what_exists(backend: Backend, make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, ExitTask, _config("visit=9"))))
        _run(helper, graph, backend)
        contents = _assert_consistent(helper.butler, graph)
        second = _run(helper, graph, backend)
        assert len(second.failed) == 4
        assert _assert_consistent(helper.butler, graph) == contents
        third = _run(helper, graph, backend, clobber_outputs=True)
        assert not third.failed
        assert _assert_consistent(helper.butler, graph) == contents
        nothing = _run(helper, graph, backend, skip_existing=True)
        assert (nothing.outcomes, nothing.blocked, nothing.n_ingested) == ({}, [], 0)


class _TwiceBackend(SerialBackend):
    """Runs every batch twice, as Spark may, and reports all outcomes of both."""

    def run(self, context: Any, batch: Any, report: Any) -> None:
        super().run(context, batch, report)
        super().run(context, batch, report)


@pytest.mark.parametrize("temporary", [(), ("dataset_auto1",)], ids=["stored", "temporary"])
def test_second_attempt_at_a_group_overwrites_the_first(
    temporary: tuple[str, ...], make_repo: MakeRepo, tmp_path: Path
) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    # The padding in its metadata makes the files of the second attempt longer.
    config = _config("visit>0", number=99, folder=str(counts))
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, FailOnceTask, config)))
        result = _run(helper, graph, _TwiceBackend(), temporary=temporary)
        assert not result.failed
        assert len(list(counts.iterdir())) == 4
        assert {path.read_text() for path in counts.iterdir()} == {"2"}
        contents = _assert_consistent(helper.butler, graph)
        assert result.n_ingested == len([name for name, data_id in contents if data_id])
    assert result.n_ingested == 4 * (9 - len(temporary))


class _LosingBackend(SerialBackend):
    """Loses the outcomes of the first attempt at every batch, as a dying Spark worker does."""

    def run(self, context: Any, batch: Any, report: Any) -> None:
        super().run(context, batch, lambda outcome: None)
        super().run(context, batch, report)


@pytest.mark.parametrize("temporary", [(), ("dataset_auto1",)], ids=["stored", "temporary"])
def test_next_attempt_overwrites_files_of_lost_attempt(
    temporary: tuple[str, ...], make_repo: MakeRepo
) -> None:
    case = Case(lambda h: _chain(h, ExitTask, _config("visit=9")))
    with make_repo("reference").open() as helper:
        expected = run_reference(helper, case)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, case)
        result = _run(helper, graph, _LosingBackend(), temporary=temporary)
        observed = observe(helper.butler, graph, result)
        assert stored_files(helper.butler) == registered_files(helper.butler)
    assert not observed.failed
    assert observed.datasets == {k: v for k, v in expected.datasets.items() if k[0] not in temporary}


class _SilentBackend(SerialBackend):
    """Reports nothing."""

    def run(self, context: Any, batch: Any, report: Any) -> None:
        super().run(context, batch, lambda outcome: None)


def test_missing_outcome_raises_engine_error(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, ExitTask, _config("visit=9"))))
        with pytest.raises(EngineError, match="No outcome came back for 3 quanta|No outcome came back"):
            _run(helper, graph, _SilentBackend())


def test_ingest_of_the_same_outcomes_twice_changes_nothing(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, ExitTask, _config("visit=9"))))
        result = _run(helper, graph, SerialBackend())
        contents = _assert_consistent(helper.butler, graph)
        types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
        quanta = graph.build_execution_quanta()
        existing = frozenset(ref.id for ref in helper.butler.query_all_datasets(RUN))
        ingester = Ingester(helper.butler, types, existing=existing)
        for _ in range(2):
            for quantum_id, outcome in result.outcomes.items():
                predicted = [ref for refs in quanta[quantum_id].outputs.values() for ref in refs]
                ingester.add(predicted, outcome.outputs, outcome.records, outcome.removed)
            ingester.flush()
        assert ingester.n_ingested == result.n_ingested
        assert _assert_consistent(helper.butler, graph) == contents


def test_small_batches_give_the_same_registry(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[Any] = []
    flush = Ingester.flush
    monkeypatch.setattr("spark_butler.repository.output_ingest._BATCH_SIZE", 5)
    monkeypatch.setattr(Ingester, "flush", lambda self: flushes.append(flush(self)))
    case = Case(lambda h: _chain(h, ExitTask, _config("visit=9")))
    with make_repo("reference").open() as helper:
        expected = run_reference(helper, case)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, case)
        _run(helper, graph, SerialBackend())
        assert len(flushes) > 6
        assert _assert_consistent(helper.butler, graph) == expected.datasets


def test_engine_error_keeps_outcomes_received_so_far(make_repo: MakeRepo) -> None:
    class Broken(SerialBackend):
        calls = 0

        def run(self, context: Any, batch: Any, report: Any) -> None:
            super().run(context, batch[:1], report)
            os.sched_yield()
            raise OSError("the cluster is gone")

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _chain(h, ExitTask, _config("visit=9"))))
        with pytest.raises(EngineError, match="The backend failed: OSError: the cluster is gone"):
            _run(helper, graph, Broken())
        contents = _assert_consistent(helper.butler, graph)
        assert {name for name, data_id in contents if data_id} >= {"dataset_auto3", "c_metadata"}
        assert not _run(helper, graph, SerialBackend(), skip_existing=True).failed
        assert len(_assert_consistent(helper.butler, graph)) > len(contents)
