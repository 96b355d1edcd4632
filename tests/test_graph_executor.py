"""`SparkGraphExecutor` next to pipe_base's `MPGraphExecutor`."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base.exec_fixup_data_id import ExecFixupDataId
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor, MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_executor import QuantumGraphExecutor
from lsst.pipe.base.quantum_reports import ExecutionStatus, Report
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.pipe.base.tests.mocks import DirectButlerRepo, DynamicTestPipelineTaskConfig

from spark_butler.errors import OptionsError, UserError
from spark_butler.graph_executor import SparkGraphExecutor
from tests.support.engine_harness import (
    RUN,
    Case,
    Repo,
    RepoCopies,
    execute_reference,
    make_graph,
    run_reference,
    snapshot,
)
from tests.support.engine_tasks import CallConfig, NoMultiprocessingTask, OverlapTask

_CCD = ("visit", "detector")
_FAIL = "visit=1 AND detector=2"

MakeRepo = Callable[[str], Repo]
Build = Callable[[DirectButlerRepo], None]


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Make processes of pipe_base's own executor start quickly."""
    multiprocessing.set_forkserver_preload(
        [
            "lsst.pipe.base.mp_graph_executor",
            "lsst.daf.butler.direct_butler",
            "tests.support.engine_tasks",
        ]
    )


@pytest.fixture
def session(spark: Any) -> Any:
    """The Spark session."""
    return spark


def _chain(**more: Any) -> Build:
    def build(helper: DirectButlerRepo) -> None:
        helper.add_task("a", config=DynamicTestPipelineTaskConfig(**more), dimensions=_CCD)
        helper.add_task("b", dimensions=_CCD)

    return build


def _without_quantum_id(text: str) -> str:
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)


def _normal(report: Report) -> dict[str, Any]:
    """A report without what differs from run to run."""
    quanta = [
        (
            quantum.taskLabel,
            tuple((key, quantum.dataId[key]) for key in ("visit", "detector")),
            quantum.status,
            quantum.exitCode,
            quantum.exceptionInfo.className if quantum.exceptionInfo else None,
            quantum.exceptionInfo.message if quantum.exceptionInfo else None,
        )
        for quantum in report.quantaReports
    ]
    return {
        "status": report.status,
        "exitCode": report.exitCode,
        "exception": report.exceptionInfo
        and (report.exceptionInfo.className, _without_quantum_id(report.exceptionInfo.message)),
        "quanta": sorted(quanta, key=repr),
        "summary": report.qgraphSummary is not None and report.qgraphSummary.outputRun,
    }


def _execute(executor: QuantumGraphExecutor, graph: Any) -> tuple[type | None, str, dict[str, Any]]:
    """Execute a graph; say what was raised, and what the report says."""
    raised: BaseException | None = None
    try:
        executor.execute(graph)
    except (MPGraphExecutorError, SystemExit) as error:
        raised = error
    report = executor.getReport()
    assert report is not None
    return (type(raised) if raised else None), _without_quantum_id(str(raised)), _normal(report)


def _side_by_side(
    make_repo: MakeRepo, session: Any, build: Build, *, num_proc: int, **options: Any
) -> tuple[Any, Any, Any]:
    """Execute the same by `MPGraphExecutor` and by both forms of `SparkGraphExecutor`."""
    answers = []
    options = {"timeout": 300.0, **options}
    copies = RepoCopies(Case(build), make_repo)
    for name in ("mp", "given", "made"):
        with copies.open(name) as (butler, graph):
            quantum_executor = SingleQuantumExecutor(butler=butler)
            if name == "mp":
                executor: QuantumGraphExecutor = MPGraphExecutor(
                    num_proc=num_proc, quantum_executor=quantum_executor, start_method="forkserver", **options
                )
            elif name == "given":
                executor = SparkGraphExecutor(
                    num_proc=num_proc, quantum_executor=quantum_executor, spark=session, **options
                )
            else:
                executor = SparkGraphExecutor(num_proc=num_proc, butler=butler, spark=session, **options)
            answers.append(_execute(executor, graph))
    return tuple(answers)  # type: ignore[return-value]


# Constructor.


def test_constructor_takes_all_arguments_of_the_multiprocess_executor() -> None:
    import inspect

    ours = inspect.signature(SparkGraphExecutor).parameters
    theirs = inspect.signature(MPGraphExecutor).parameters
    assert set(theirs) <= set(ours)
    assert all(ours[name].kind is theirs[name].kind for name in theirs)
    assert isinstance(SparkGraphExecutor(quantum_executor=_no_executor()), QuantumGraphExecutor)


def _no_executor() -> SingleQuantumExecutor:
    return SingleQuantumExecutor(limited_butler_factory=lambda quantum: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("num_proc", [0, -1])
def test_impossible_number_of_processes_is_refused(num_proc: int) -> None:
    with pytest.raises(OptionsError, match=f"num_proc is {num_proc}; expected at least 1") as caught:
        SparkGraphExecutor(num_proc=num_proc, quantum_executor=_no_executor())
    assert isinstance(caught.value, UserError)


def test_butler_or_quantum_executor_must_be_given(template: Path) -> None:
    with pytest.raises(OptionsError, match="Exactly one of quantum_executor and butler"):
        SparkGraphExecutor(num_proc=2)
    with (
        Butler.from_config(str(template)) as butler,
        pytest.raises(OptionsError, match="Exactly one of quantum_executor and butler"),
    ):
        SparkGraphExecutor(butler=butler, quantum_executor=_no_executor())


def test_report_before_execution_is_refused() -> None:
    with pytest.raises(RuntimeError, match="before execute"):
        SparkGraphExecutor(quantum_executor=_no_executor()).getReport()


# Results.


@pytest.mark.parametrize(
    ("made", "old"),
    [
        pytest.param(False, False, id="given-new-graph"),
        pytest.param(True, True, id="made-old-graph"),
        pytest.param(False, True, id="given-old-graph", marks=pytest.mark.slow),
        pytest.param(True, False, id="made-new-graph", marks=pytest.mark.slow),
    ],
)
def test_graph_is_executed_on_spark(made: bool, old: bool, make_repo: MakeRepo, session: Any) -> None:
    case = Case(_chain())
    copies = RepoCopies(case, make_repo)
    with copies.open("reference") as (butler, graph):
        expected = execute_reference(butler, graph, case)
    with copies.open("repo") as (butler, graph):
        if made:
            executor = SparkGraphExecutor(butler=butler, spark=session)
        else:
            quantum_executor = SingleQuantumExecutor(butler=butler)
            executor = SparkGraphExecutor(quantum_executor=quantum_executor, spark=session)
        executor.execute(_to_old(graph) if old else graph)
        butler.registry.refresh()
        assert snapshot(butler, graph) == expected.datasets
        report = executor.getReport()
    assert report.status is ExecutionStatus.SUCCESS
    assert len(report.quantaReports) == 8
    assert {quantum.exitCode for quantum in report.quantaReports} == {0}


def _to_old(graph: PredictedQuantumGraph) -> Any:
    return graph.to_old_quantum_graph()


def test_one_process_means_this_process(make_repo: MakeRepo, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_overlapping(notes)))
        # No Spark session is given, and none is made.
        executor = SparkGraphExecutor(num_proc=1, butler=helper.butler)
        executor.execute(graph)
        assert len(executor.getReport().quantaReports) == 4
    assert {json.loads(path.read_text())[2] for path in notes.iterdir()} == {os.getpid()}


def _overlapping(notes: Path) -> Build:
    def build(helper: DirectButlerRepo) -> None:
        config = CallConfig(folder=str(notes))
        helper.add_task("a", task_class=OverlapTask, config=config, dimensions=_CCD)

    return build


def _greatest_overlap(notes: Path) -> int:
    events = []
    for path in notes.iterdir():
        start, end, *_ = json.loads(path.read_text())
        events += [(start, 1), (end, -1)]
    return max(itertools.accumulate(step for _, step in sorted(events)))


@pytest.mark.parametrize("made", [pytest.param(False, marks=pytest.mark.slow), True], ids=["given", "made"])
def test_number_of_processes_is_a_limit(
    made: bool, make_repo: MakeRepo, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the engine's own choice two run at once on two cores; with a limit of two never more.

    Since the test's session has two slots, the dispatcher is watched, too.
    """
    from spark_butler.driver import scheduler as dispatch

    notes = tmp_path / "notes"
    notes.mkdir()
    submitted: list[int] = []
    submit = dispatch.Scheduler._dispatch

    def watched(self: Any, *args: Any) -> None:
        submit(self, *args)
        submitted.append(sum(self._running.values()))

    monkeypatch.setattr(dispatch.Scheduler, "_dispatch", watched)
    monkeypatch.setattr("spark_butler.spark.backend.SparkBackend.slots", 16)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_overlapping(notes)))
        if made:
            executor = SparkGraphExecutor(num_proc=2, butler=helper.butler, spark=session)
        else:
            quantum_executor = SingleQuantumExecutor(butler=helper.butler)
            executor = SparkGraphExecutor(num_proc=2, quantum_executor=quantum_executor, spark=session)
        executor.execute(graph)
    assert len(list(notes.iterdir())) == 4
    assert max(submitted) == 2
    assert _greatest_overlap(notes) <= 2
    assert os.getpid() not in {json.loads(path.read_text())[2] for path in notes.iterdir()}


def test_order_of_a_fixup_is_kept(make_repo: MakeRepo, session: Any, tmp_path: Path) -> None:
    for reverse in (False, True):
        notes = tmp_path / f"notes{reverse}"
        notes.mkdir()
        with make_repo(f"repo{reverse}").open() as helper:
            graph = make_graph(helper, Case(_overlapping(notes)))
            fixup = ExecFixupDataId("a", ("visit", "detector"), reverse=reverse)
            SparkGraphExecutor(butler=helper.butler, spark=session, execution_graph_fixup=fixup).execute(
                graph
            )
        starts = {path.stem: json.loads(path.read_text())[0] for path in notes.iterdir()}
        # Names are task, instrument, detector, visit.
        order = sorted(starts, key=lambda name: starts[name])
        expected = sorted(starts, key=lambda name: tuple(reversed(name.split("-")[-2:])), reverse=reverse)
        assert order == expected
        assert _greatest_overlap(notes) == 1


# The same failures as MPGraphExecutor.


def test_failures_equal_those_of_pipe_base(make_repo: MakeRepo, session: Any, fork_server: None) -> None:
    expected, *answers = _side_by_side(make_repo, session, _chain(fail_condition=_FAIL), num_proc=2)
    assert expected[0] is MPGraphExecutorError
    assert expected[1] == "One or more tasks failed or timed out during execution."
    assert Counter(quantum[2] for quantum in expected[2]["quanta"]) == {
        ExecutionStatus.SUCCESS: 6,
        ExecutionStatus.FAILURE: 1,
        ExecutionStatus.SKIPPED: 1,
    }
    assert answers == [expected, expected]


@pytest.mark.slow
def test_signals_equal_those_of_pipe_base(make_repo: MakeRepo, session: Any, fork_server: None) -> None:
    build = _chain(fail_condition=_FAIL, fail_signal=signal.SIGILL.value)
    expected, *answers = _side_by_side(make_repo, session, build, num_proc=2)
    assert expected[0] is MPGraphExecutorError
    assert [quantum[3] for quantum in expected[2]["quanta"] if quantum[2] is ExecutionStatus.FAILURE] == [
        -signal.SIGILL
    ]
    assert answers == [expected, expected]


@pytest.mark.parametrize(
    "number", [pytest.param(None, marks=pytest.mark.slow), signal.SIGABRT], ids=["exception", "signal"]
)
def test_failures_with_fail_fast_equal_those_of_pipe_base(
    number: signal.Signals | None, make_repo: MakeRepo, session: Any, fork_server: None
) -> None:
    build = _chain(fail_condition="visit>0", fail_signal=number and number.value)
    expected, *answers = _side_by_side(make_repo, session, build, num_proc=2, fail_fast=True)
    form = re.compile(
        r"Task <a dataId=\{instrument: 'Cam1', detector: [12], visit: [12].*\}> failed, "
        + (r"exit code=1" if number is None else r"killed by signal 6 \(Aborted\)")
    )
    for kind, text, report in (expected, *answers):
        assert kind is MPGraphExecutorError
        assert form.fullmatch(text)
        assert report["status"] is ExecutionStatus.FAILURE
        assert report["exception"] == ("lsst.pipe.base.mp_graph_executor.MPGraphExecutorError", text)


@pytest.mark.slow
def test_timeouts_equal_those_of_pipe_base(make_repo: MakeRepo, session: Any, fork_server: None) -> None:
    def build(helper: DirectButlerRepo) -> None:
        config = CallConfig(
            fail_condition=_FAIL, folder=str(helper.butler._config.configDir.ospath), number=60
        )
        helper.add_task("a", task_class=OverlapTask, config=config, dimensions=_CCD)

    expected, *answers = _side_by_side(make_repo, session, build, num_proc=2, timeout=8.0)
    assert expected[0] is MPTimeoutError
    assert expected[1] == "One or more tasks timed out during execution."
    assert expected[2]["status"] is ExecutionStatus.TIMEOUT
    assert [quantum[3] for quantum in expected[2]["quanta"] if quantum[2] is ExecutionStatus.TIMEOUT] == [
        -signal.SIGTERM
    ]
    assert answers == [expected, expected]


def test_task_without_multiprocessing_is_refused_as_by_pipe_base(make_repo: MakeRepo, session: Any) -> None:
    def build(helper: DirectButlerRepo) -> None:
        helper.add_task("a", task_class=NoMultiprocessingTask, dimensions=_CCD)

    expected, *answers = _side_by_side(make_repo, session, build, num_proc=2)
    assert expected[0] is MPGraphExecutorError
    assert "does not support multiprocessing" in expected[1]
    assert answers == [expected, expected]


def test_invalid_quantum_ends_the_run(make_repo: MakeRepo, session: Any) -> None:
    build = _chain(fail_condition="visit>0", fail_exception="lsst.pipe.base.InvalidQuantumError")
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(build))
        executor = SparkGraphExecutor(butler=helper.butler, spark=session)
        with pytest.raises(MPGraphExecutorError, match=r"Task <a dataId=.*> failed, exit code=21"):
            executor.execute(graph)
        assert executor.getReport().status is ExecutionStatus.FAILURE


# Where pipe_base takes an executor.


def test_separable_pipeline_executor_takes_it(make_repo: MakeRepo, session: Any) -> None:
    with make_repo("reference").open() as helper:
        expected = run_reference(helper, Case(_chain()))
    with make_repo("repo").open() as helper:
        _chain()(helper)
        graph = helper.make_quantum_graph(output_run=RUN)
        root = str(helper.butler._config.configDir)
        with Butler.from_config(root, collections=["input_chain"], run=RUN, writeable=True) as butler:
            separable = SeparablePipelineExecutor(butler)
            separable.pre_execute_qgraph(graph)
            executor = SparkGraphExecutor(butler=butler, spark=session)
            separable.run_pipeline(graph, graph_executor=executor)
            assert executor.getReport().status is ExecutionStatus.SUCCESS
            observed = {
                (ref.datasetType.name, ref.dataId.required_values) for ref in butler.query_all_datasets(RUN)
            }
    assert observed - {("packages", ())} == set(expected.datasets) - {("packages", ())}
