"""Provenance graphs of runs of the engine."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, QuantumBackedButler
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.graph import QuantumGraph
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor, MPGraphExecutorError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph.ingest_graph import ingest_graph
from lsst.pipe.base.quantum_graph_executor import QuantumGraphExecutor
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.pipe.base.tests.mocks import DirectButlerRepo, DynamicTestPipelineTaskConfig
from lsst.resources import ResourcePath

from spark_butler.atomic_write import atomic_write
from spark_butler.driver.backend import Backend
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.errors import EngineError, OptionsError
from spark_butler.graph_executor import SparkGraphExecutor
from spark_butler.model.options import ResourceRequests, RunOptions
from spark_butler.model.outcomes import FailureKind, QuantumOutcome, RunResult
from spark_butler.provenance.recorder import ProvenanceRecorder, check_destination
from spark_butler.provenance.scan import QuantumScan, join_scans
from tests.provenance.provenance_harness import Seen, look, look_at
from tests.support.engine_harness import RUN, Case, FaultInjector, Repo, RepoCopies, make_graph
from tests.support.engine_tasks import (
    CallConfig,
    ExitTask,
    FailOnceTask,
    NoMultiprocessingTask,
    OverlapTask,
    TroubleConfig,
    TroubleTask,
)
from tests.support.zip_seek import seek_by_reading

_CCD = ("visit", "detector")
_FAIL = "visit=1 AND detector=2"
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

MakeRepo = Callable[[str], Repo]
Build = Callable[[DirectButlerRepo], None]


@pytest.fixture
def session(spark: Any) -> Any:
    """The Spark session."""
    return spark


def _chain(task_class: type | None = None, config: Any = None, **more: Any) -> Build:
    def build(helper: DirectButlerRepo) -> None:
        first = config or DynamicTestPipelineTaskConfig(**more)
        options: dict[str, Any] = {} if task_class is None else {"task_class": task_class}
        helper.add_task("a", config=first, dimensions=_CCD, **options)
        helper.add_task("b", dimensions=_CCD)

    return build


def _run(
    helper: DirectButlerRepo,
    graph: PredictedQuantumGraph,
    path: Path | str,
    backend: Backend | None = None,
    **options: Any,
) -> RunResult:
    """Run a graph with the engine and record its provenance."""
    backend = backend or SerialBackend()
    with ProvenanceRecorder(graph, path, butler=helper.butler) as recorder:
        result = execute_graph(graph, helper.butler, backend, RunOptions(**options), recorder=recorder)
        recorder.finish(result)
    return result


# The same as pipe_base writes.


def _executors(butler: Butler, session: Any) -> dict[str, Callable[[], QuantumGraphExecutor]]:
    given = SingleQuantumExecutor(butler=butler)
    return {
        "theirs": lambda: MPGraphExecutor(num_proc=1, timeout=300.0, quantum_executor=given),
        "given": lambda: SparkGraphExecutor(quantum_executor=given, spark=session),
        "made": lambda: SparkGraphExecutor(butler=butler, spark=session),
        "two": lambda: SparkGraphExecutor(num_proc=2, butler=butler, spark=session),
        "given here": lambda: SparkGraphExecutor(num_proc=1, quantum_executor=given),
        "made here": lambda: SparkGraphExecutor(num_proc=1, butler=butler),
    }


_OURS = ("given", "made", "two", "given here", "made here")


@pytest.mark.parametrize(
    ("config", "expected", "ours"),
    [
        pytest.param({}, "SUCCESSFUL", _OURS, id="success", marks=pytest.mark.slow),
        pytest.param({"fail_condition": _FAIL}, "FAILED", ("given", "made", "made here"), id="failure"),
        pytest.param({"fail_condition": _FAIL}, "FAILED", _OURS, id="failure-all", marks=pytest.mark.slow),
        pytest.param(
            {"fail_condition": _FAIL, "fail_exception": "lsst.pipe.base.NoWorkFound"},
            "SUCCESSFUL",
            _OURS,
            id="no-work",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_graph_is_the_one_that_pipe_base_writes(
    config: dict[str, Any],
    expected: str,
    ours: Sequence[str],
    make_repo: MakeRepo,
    session: Any,
    tmp_path: Path,
) -> None:
    seen: dict[str, dict[tuple[Any, ...], Seen]] = {}
    copies = RepoCopies(Case(_chain(**config)), make_repo)
    for name in ("theirs", *ours):
        with copies.open(name) as (butler, graph):
            path = tmp_path / f"{name}.qg"
            executor = _executors(butler, session)[name]()
            if expected == "FAILED":
                with pytest.raises(MPGraphExecutorError):
                    executor.execute(graph, provenance_graph_file=str(path))
            else:
                executor.execute(graph, provenance_graph_file=str(path))
            seen[name] = look(path)
    assert seen["theirs"]["a", "Cam1", 2, 1].status == expected
    assert seen["theirs"]["b", "Cam1", 2, 1].status == {"FAILED": "BLOCKED"}.get(expected, "SUCCESSFUL")
    for name, each in seen.items():
        assert each == seen["theirs"], name


def test_old_graph_is_recorded(make_repo: MakeRepo, session: Any, tmp_path: Path) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain())).to_old_quantum_graph()
        assert isinstance(graph, QuantumGraph)
        executor = SparkGraphExecutor(butler=helper.butler, spark=session)
        executor.execute(graph, provenance_graph_file=str(tmp_path / "provenance.qg"))
    assert {each.status for each in look(tmp_path / "provenance.qg").values()} == {"SUCCESSFUL"}


def test_graph_is_written_before_the_error_that_callers_rely_on(
    make_repo: MakeRepo, session: Any, tmp_path: Path
) -> None:
    path = tmp_path / "provenance.qg"
    with make_repo("repo").open() as helper:
        build = _chain(NoMultiprocessingTask, DynamicTestPipelineTaskConfig())
        graph = make_graph(helper, Case(build))
        executor = SparkGraphExecutor(butler=helper.butler, spark=session)
        with pytest.raises(MPGraphExecutorError, match="does not support multiprocessing"):
            executor.execute(graph, provenance_graph_file=str(path))
    assert {each.status for each in look(path).values()} == {"UNKNOWN"}


# Attempts that could not tell.


@pytest.mark.parametrize("made", [pytest.param(False, marks=pytest.mark.slow), True], ids=["given", "made"])
def test_killed_quantum_is_recorded_as_aborted(
    made: bool, make_repo: MakeRepo, session: Any, tmp_path: Path
) -> None:
    path = tmp_path / "provenance.qg"
    config = CallConfig(fail_condition=_FAIL, way="os._exit", number=3)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain(ExitTask, config)))
        executor = _executors(helper.butler, session)["made" if made else "given"]()
        with pytest.raises(MPGraphExecutorError):
            executor.execute(graph, provenance_graph_file=str(path))
    seen = look_at(path, "a", 1, 2)
    error = "lsst.pipe.base.mp_graph_executor.MPGraphExecutorError"
    assert seen.attempts == (("ABORTED", error, False, False),)
    assert seen.produced == set()
    assert look_at(path, "b", 1, 2).status == "BLOCKED"
    assert sum(each.status == "SUCCESSFUL" for each in look(path).values()) == 6


@pytest.mark.slow
def test_timed_out_quantum_is_recorded_as_aborted(make_repo: MakeRepo, session: Any, tmp_path: Path) -> None:
    path = tmp_path / "provenance.qg"
    config = CallConfig(fail_condition=_FAIL, folder=str(tmp_path), number=60)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain(OverlapTask, config)))
        executor = SparkGraphExecutor(butler=helper.butler, spark=session, timeout=5.0)
        with pytest.raises(MPGraphExecutorError):
            executor.execute(graph, provenance_graph_file=str(path))
    error = "lsst.pipe.base.mp_graph_executor.MPTimeoutError"
    assert look_at(path, "a", 1, 2).attempts == (("ABORTED", error, False, False),)


def test_quantum_found_complete_is_read_in_the_repository(make_repo: MakeRepo, tmp_path: Path) -> None:
    def recover(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        yield dataclasses.replace(outcome, scan=None, recovered=True)

    seen = []
    for name, backend in (("plain", SerialBackend()), ("recovered", FaultInjector(recover))):
        with make_repo(name).open() as helper:
            graph = make_graph(helper, Case(_chain()))
            _run(helper, graph, tmp_path / f"{name}.qg", backend)
            seen.append(look(tmp_path / f"{name}.qg"))
    assert seen[0] == seen[1]
    assert {each.status for each in seen[1].values()} == {"SUCCESSFUL"}


def test_quantum_whose_input_was_lost_has_no_log(make_repo: MakeRepo, tmp_path: Path) -> None:
    def strand(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        if outcome.report.taskLabel == "b":
            changes: dict[str, Any] = {
                "status": QuantumAttemptStatus.FAILED,
                "kind": FailureKind.UPSTREAM,
                "outputs": (),
            }
            outcome = dataclasses.replace(outcome, scan=None, records={}, reason="lost", **changes)
        yield outcome

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        _run(helper, graph, tmp_path / "provenance.qg", FaultInjector(strand))
    error = "lsst.pipe.base.mp_graph_executor.MPGraphExecutorError"
    seen = look(tmp_path / "provenance.qg")
    assert {each.attempts for key, each in seen.items() if key[0] == "b"} == {
        (("ABORTED", error, False, False),)
    }


def test_scan_error_does_not_fail_the_quantum(
    make_repo: MakeRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spark_butler.provenance.scan

    scan_attempt, calls = spark_butler.provenance.scan.scan_attempt, [0]

    def fail_at_first(*args: Any, **kwargs: Any) -> QuantumScan:
        calls[0] += 1
        if calls[0] <= 8:
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return scan_attempt(*args, **kwargs)

    monkeypatch.setattr("spark_butler.provenance.scan.scan_attempt", fail_at_first)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        result = _run(helper, graph, tmp_path / "provenance.qg")
        assert not result.failed
    assert calls == [8]
    assert {each.status for each in look(tmp_path / "provenance.qg").values()} == {"SUCCESSFUL"}


def test_long_logs_are_read_in_the_repository(
    make_repo: MakeRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_butler.provenance.scan.MAX_SCAN_BYTES", 10)
    sent: list[bytes | None] = []

    def watch(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        sent.append(outcome.scan)
        yield outcome

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain(fail_condition=_FAIL)))
        _run(helper, graph, tmp_path / "provenance.qg", FaultInjector(watch))
    assert sent == [None] * 7
    seen = look(tmp_path / "provenance.qg")
    assert seen["a", "Cam1", 2, 1].attempts == (("FAILED", "ValueError", True, True),)
    assert sum(each.status == "SUCCESSFUL" for each in seen.values()) == 6


# Several attempts.


def test_attempts_of_earlier_runs_are_kept(make_repo: MakeRepo, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    config = CallConfig(fail_condition=_FAIL, folder=str(notes), number=-1)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain(FailOnceTask, config)))
        _run(helper, graph, tmp_path / "first.qg")
        result = _run(helper, graph, tmp_path / "second.qg", skip_existing=True, clobber_outputs=True)
        assert len(result.outcomes) == 2
    first, second = look(tmp_path / "first.qg"), look(tmp_path / "second.qg")
    again = "a", "Cam1", 2, 1
    assert first[again].attempts == (("FAILED", "ValueError", True, True),)
    assert second[again].attempts == (
        ("FAILED", "ValueError", True, True),
        ("SUCCESSFUL", None, True, True),
    )
    after = "b", "Cam1", 2, 1
    assert (first[after].status, second[after].status) == ("BLOCKED", "SUCCESSFUL")
    others = first.keys() - {again, after}
    assert {key: first[key] for key in others} == {key: second[key] for key in others}


@pytest.mark.parametrize(
    ("num_proc", "made"),
    [
        pytest.param(1, False, id="1-given"),
        pytest.param(None, True, id="None-made"),
        pytest.param(1, True, id="1-made", marks=pytest.mark.slow),
        pytest.param(None, False, id="None-given", marks=pytest.mark.slow),
    ],
)
def test_what_the_callers_executor_skips_is_read_with_its_butler(
    num_proc: int | None, made: bool, make_repo: MakeRepo, session: Any, tmp_path: Path
) -> None:
    """Through a full butler, and through one that is made for each quantum."""
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        _run(helper, graph, tmp_path / "first.qg")
        root, universe = str(helper.butler._config.configDir), helper.butler.dimensions
        if made:
            executor = SingleQuantumExecutor(
                limited_butler_factory=lambda quantum: QuantumBackedButler.initialize(
                    root, quantum, universe
                ),
                skip_existing=True,
            )
        else:
            executor = SingleQuantumExecutor(butler=helper.butler, skip_existing=True)
        on_spark = SparkGraphExecutor(num_proc=num_proc, quantum_executor=executor, spark=session)
        on_spark.execute(graph, provenance_graph_file=str(tmp_path / "second.qg"))
    assert look(tmp_path / "second.qg") == look(tmp_path / "first.qg")


def test_first_success_of_repeated_quantum_is_kept(make_repo: MakeRepo, tmp_path: Path) -> None:
    """A maker of a lost temporary runs again, and may fail then."""
    failures: dict[uuid.UUID, QuantumOutcome] = {}

    def keep(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        failures[outcome.quantum_id] = outcome
        yield outcome

    def repeat(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        yield outcome
        scan = next(iter(failures.values())).scan
        status = QuantumAttemptStatus.FAILED
        yield dataclasses.replace(outcome, status=status, scan=scan)

    with make_repo("other").open() as helper:
        graph = make_graph(helper, Case(_chain(fail_condition="visit>0")))
        _run(helper, graph, tmp_path / "failed.qg", FaultInjector(keep))
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        result = _run(helper, graph, tmp_path / "provenance.qg", FaultInjector(repeat))
        assert not result.failed
    assert {each.attempts for each in look(tmp_path / "provenance.qg").values()} == {
        (("SUCCESSFUL", None, True, True),)
    }


def test_attempts_of_one_run_are_joined_once(make_repo: MakeRepo, tmp_path: Path) -> None:
    """A failure that is reported, and is then in the logs of the next attempt, too."""
    notes = tmp_path / "notes"
    notes.mkdir()
    config = CallConfig(fail_condition=_FAIL, folder=str(notes), number=-2)
    scans: list[QuantumScan] = []

    def keep(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        if outcome.report.taskLabel == "a" and outcome.report.dataId["visit"] == 1:
            assert outcome.scan is not None
            scans.append(pickle.loads(outcome.scan))
        yield outcome

    def build(helper: DirectButlerRepo) -> None:
        helper.add_task("a", task_class=FailOnceTask, config=config, dimensions=("visit", "detector"))

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(build))
        for _ in range(3):
            _run(
                helper,
                graph,
                tmp_path / "provenance.qg",
                FaultInjector(keep),
                skip_existing=True,
                clobber_outputs=True,
            )
    *_, first, second, third = scans
    assert [len(scan.open()) for scan in (first, second, third)] == [1, 2, 3]
    whole = third.open()
    for several in ([first, second, third], [second, third], [first, third]):
        joined = join_scans(several)
        assert joined.open() == whole
        assert joined.status is QuantumAttemptStatus.SUCCESSFUL
    assert look_at(tmp_path / "provenance.qg", "a", 1, 2).attempts == (
        ("FAILED", "ValueError", True, True),
        ("FAILED", "ValueError", True, True),
        ("SUCCESSFUL", None, True, True),
    )


@pytest.mark.slow
def test_attempts_of_one_run_are_all_there(
    make_repo: MakeRepo, spark_backend: Backend, tmp_path: Path
) -> None:
    """Those that wrote a log and those that could not, and the causes of both."""
    troubles = {1: "store", 2: "lost", 3: "segfault", 4: "hang", 5: "memory"}
    config = TroubleConfig(folder=str(tmp_path), number=2000)
    config.troubles = {str(detector): trouble for detector, trouble in troubles.items()}
    requests = ResourceRequests(request_memory=600.0, memory_multiplier=1.2, memory_limit=720.0)
    path = tmp_path / "provenance.qg"
    with make_repo("repo").open() as helper:
        rows = [{"instrument": "Cam1", "id": n, "full_name": f"D{n}"} for n in (3, 4, 5, 6)]
        helper.butler.registry.insertDimensionData("detector", *rows)
        helper.add_task("a", task_class=TroubleTask, config=config, dimensions=("detector",))
        graph = make_graph(helper, Case(lambda each: None))
        _run(helper, graph, path, spark_backend, retries=2, timeout=10.0, resources=requests)
    seen = {key[2]: each.attempts for key, each in look(path).items()}
    fine = ("SUCCESSFUL", None, True, True)
    theirs = "lsst.pipe.base.mp_graph_executor"
    died = ("ABORTED", f"{theirs}.MPGraphExecutorError", False, False)
    assert seen[6] == (fine,)
    assert seen[1] == (("FAILED", "ConnectionResetError", True, True), fine)
    assert seen[2] == (died, fine)
    assert seen[3] == (died,)
    assert seen[4] == (("ABORTED", f"{theirs}.MPTimeoutError", False, False),)
    assert len(seen[5]) == 2
    assert {attempt[1] for attempt in seen[5]} == {"MemoryError"}


# Runs that end before their time.


def test_unreached_quantum_is_not_recorded_as_blocked(make_repo: MakeRepo, tmp_path: Path) -> None:
    def build(helper: DirectButlerRepo) -> None:
        config = DynamicTestPipelineTaskConfig(fail_condition="visit=1 AND detector=1")
        helper.add_task("a", config=config, dimensions=_CCD)
        helper.add_task("b", dimensions=_CCD)

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(build))
        result = _run(helper, graph, tmp_path / "provenance.qg", fail_fast=True, group_by="quantum")
        assert result.stopped_by is not None
    seen = look(tmp_path / "provenance.qg")
    assert seen["a", "Cam1", 1, 1].status == "FAILED"
    assert seen["b", "Cam1", 1, 1].status == "BLOCKED"
    tried = {graph.quantum_only_xgraph.nodes[q]["data_id"].required_values for q in result.outcomes}
    for key, each in seen.items():
        if key[1:] not in tried:
            assert each.attempts == (("UNKNOWN", None, False, False),)
    assert "UNKNOWN" in {each.status for each in seen.values()}


def test_run_with_engine_error_leaves_no_graph(make_repo: MakeRepo, tmp_path: Path) -> None:
    def lose(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        raise RuntimeError("lost")
        yield outcome

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        with pytest.raises(EngineError):
            _run(helper, graph, tmp_path / "folder" / "provenance.qg", FaultInjector(lose))
    assert not (tmp_path / "folder").exists()


# Temporaries.


@pytest.mark.parametrize("recovered", [False, True], ids=["sent", "read"])
def test_temporaries_are_recorded_as_produced(recovered: bool, make_repo: MakeRepo, tmp_path: Path) -> None:
    def forget(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        yield dataclasses.replace(outcome, scan=None, recovered=True) if recovered else outcome

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        _run(helper, graph, tmp_path / "provenance.qg", FaultInjector(forget), temporary=("auto",))
    seen = look(tmp_path / "provenance.qg")
    assert {each.status for each in seen.values()} == {"SUCCESSFUL"}
    assert all("dataset_auto1" in each.produced for key, each in seen.items() if key[0] == "a")


# Cost.


def test_provenance_is_sent_only_on_request(make_repo: MakeRepo, tmp_path: Path) -> None:
    sent: list[bytes | None] = []

    def watch(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        sent.append(outcome.scan)
        yield outcome

    with make_repo("without").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        execute_graph(graph, helper.butler, FaultInjector(watch), RunOptions())
    assert sent == [None] * 8
    sent.clear()
    with make_repo("with").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        result = _run(helper, graph, tmp_path / "provenance.qg", FaultInjector(watch))
    assert all(sent)
    assert {outcome.scan for outcome in result.outcomes.values()} == {None}, "the driver must not keep them"


# The file.


def test_full_disk_of_driver_falls_back_to_repository(
    make_repo: MakeRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        written = 0

        def __init__(self, stream: Any):
            self._stream = stream

        def write(self, data: bytes) -> int:
            if self.written > 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.written += 1
            return int(self._stream.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain(fail_condition=_FAIL)))
        with ProvenanceRecorder(graph, tmp_path / "provenance.qg", butler=helper.butler) as recorder:
            recorder._spool = Full(recorder._spool)  # type: ignore[assignment]
            result = execute_graph(graph, helper.butler, SerialBackend(), RunOptions(), recorder=recorder)
            recorder.finish(result)
    seen = look(tmp_path / "provenance.qg")
    assert seen["a", "Cam1", 2, 1].attempts == (("FAILED", "ValueError", True, True),)
    assert sum(each.attempts == (("SUCCESSFUL", None, True, True),) for each in seen.values()) == 6


def test_graph_write_error_is_raised_after_the_run(make_repo: MakeRepo, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        with pytest.raises(EngineError, match=r"in the repository, but its provenance graph .*file/x.qg"):
            _run(helper, graph, tmp_path / "file" / "x.qg")
        assert len(helper.butler.query_datasets("b_metadata", collections=RUN)) == 4


def test_graph_goes_to_an_object_store(make_repo: MakeRepo, s3_bucket: str) -> None:
    target = f"s3://{s3_bucket}/folder/provenance.qg"
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        _run(helper, graph, target)
        _run(helper, graph, target, clobber_outputs=True)
    found = list(ResourcePath.findFileResources([f"s3://{s3_bucket}/folder/"]))
    assert [str(path) for path in found] == [target]
    with ResourcePath(target).as_local() as local:
        assert {each.status for each in look(local.ospath).values()} == {"SUCCESSFUL"}


def _write_half(target: Path | str) -> None:
    with atomic_write(target) as path:
        path.write_text("half")
        raise ZeroDivisionError


def test_graph_file_is_written_atomically(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "x.qg"
    with pytest.raises(ZeroDivisionError):
        _write_half(target)
    assert list(target.parent.iterdir()) == []
    with atomic_write(target) as path:
        path.write_text("whole")
    with pytest.raises(ZeroDivisionError):
        _write_half(str(target))
    assert [each.name for each in target.parent.iterdir()] == ["x.qg"]
    assert target.read_text() == "whole"


def test_killed_driver_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    target = tmp_path / "x.qg"
    code = (
        "import sys, time; from spark_butler.atomic_write import atomic_write\n"
        "with atomic_write(sys.argv[1]) as path:\n"
        "    path.write_text('half'); print('now', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, env=_ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    with atomic_write(target) as path:
        path.write_text("whole")
    assert [each.name for each in tmp_path.iterdir()] == ["x.qg"]


@pytest.mark.pipeline
def test_nothing_is_left_by_a_driver_killed_in_the_middle_of_a_run(tmp_path: Path) -> None:
    code = (
        "import time; from spark_butler.provenance.recorder import ProvenanceRecorder\n"
        "from types import SimpleNamespace as N\n"
        "recorder = ProvenanceRecorder(N(quantum_only_xgraph=None), 'x.qg')\n"
        "recorder.add(N(scan=b'x' * 10**6, quantum_id=1, attempts=()))\n"
        "print('now', flush=True); time.sleep(60)\n"
    )
    environment = {**_ENVIRONMENT, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.json", "file/x.qg", "folder.qg"])
def test_impossible_destination_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.qg").mkdir()
    with pytest.raises(OptionsError, match="provenance graph"):
        check_destination(str(tmp_path / name))


@pytest.mark.parametrize("name", ["x.qg", "a/b/x.qg"])
def test_possible_destination_is_not_refused(name: str, tmp_path: Path) -> None:
    check_destination(str(tmp_path / name))
    check_destination("s3://bucket/x.qg")
    assert list(tmp_path.iterdir()) == []


# The graph as pipe_base reads it.


def test_graph_can_be_ingested(make_repo: MakeRepo, tmp_path: Path) -> None:
    path = tmp_path / "provenance.qg"
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain(fail_condition=_FAIL)))
        _run(helper, graph, path, temporary=("auto",))
        root = str(helper.butler._config.configDir)
        refs = helper.butler.query_all_datasets(RUN)
        contents = {ref.id: _text(helper.butler.get(ref)) for ref in refs}
        ingest_graph(root, str(path), transfer="copy")
    with Butler.from_config(root, collections=RUN) as butler:
        found = {ref.id for ref in butler.query_all_datasets(RUN) if ref.datasetType.name != "run_provenance"}
        assert found == contents.keys()
        with seek_by_reading():
            for ref in refs:
                assert _text(butler.get(ref)) == contents[ref.id]
        assert len(butler.get("run_provenance").quantum_only_xgraph) == 8


def _text(value: Any) -> str:
    if hasattr(value, "to_json_data"):
        return "".join(record.model_dump_json() for record in value)
    if hasattr(value, "model_dump_json"):
        return str(value.model_dump_json())
    return repr(value)


def test_recording_takes_little_time(make_repo: MakeRepo, tmp_path: Path) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_chain()))
        with ProvenanceRecorder(graph, tmp_path / "provenance.qg", butler=helper.butler) as recorder:
            result = execute_graph(graph, helper.butler, SerialBackend(), RunOptions(), recorder=recorder)
            outcome = next(iter(result.outcomes.values()))
            start = time.process_time()
            for _ in range(1000):
                recorder.add(dataclasses.replace(outcome, scan=bytes(5000)))
            assert time.process_time() - start < 1.0
