"""Metadata and logs of a run in a few objects: `--bundle`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_harness import (
    RUN,
    BackendAround,
    Case,
    Meddler,
    Repo,
    make_graph,
    registered_files,
    snapshot,
    stored_files,
)
from engine_tasks import CallConfig, FailOnceTask, TroubleConfig, TroubleTask
from lsst.daf.butler import Butler, DatasetRef
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicConnectionConfig,
)
from mock_night import insert_dimensions
from provenance_harness import look, look_at
from zip_seek import seek_by_reading

from spark_butler import engine, scans
from spark_butler.backends import Backend, SerialBackend
from spark_butler.config import RunOptions
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.dispatch import RunResult
from spark_butler.engine import execute_graph
from spark_butler.failures import FailureKind
from spark_butler.outcomes import QuantumOutcome
from spark_butler.provenance import ProvenanceRecorder
from spark_butler.quanta import all_inputs, all_outputs
from spark_butler.registry import Ingester
from spark_butler.resume import needs_clobber
from spark_butler.scans import empty_scan

_CCD = ("visit", "detector")

MakeRepo = Callable[[str], Repo]


def _one(name: str, dimensions: tuple[str, ...] = _CCD, **more: Any) -> DynamicConnectionConfig:
    return DynamicConnectionConfig(dataset_type_name=name, dimensions=dimensions, **more)


def _build(helper: DirectButlerRepo, **tasks: Any) -> None:
    """A chain for each detector, and a gather for each visit."""
    helper.add_task("a", dimensions=_CCD, outputs={"x": _one("x")}, **tasks.get("a", {}))
    helper.add_task(
        "b", dimensions=_CCD, inputs={"x": _one("x")}, outputs={"y": _one("y")}, **tasks.get("b", {})
    )
    helper.add_task("g", dimensions=("visit",), inputs={"y": _one("y", multiple=True)})


def _run(
    helper: DirectButlerRepo, graph: PredictedQuantumGraph, backend: Backend | None = None, **more: Any
) -> RunResult:
    options = {"bundle": True, **more}
    return execute_graph(graph, helper.butler, backend or SerialBackend(), RunOptions(**options))


@pytest.fixture(autouse=True)
def seeks() -> Iterator[None]:
    """Read single metadata and logs with any Python."""
    with seek_by_reading():
        yield


def _parts(butler: Butler) -> list[str]:
    return [name for name in stored_files(butler) if "/bundle/" in name]


def _assert_sound(butler: Butler) -> None:
    """Every file is registered, with its size."""
    butler.registry.refresh()
    assert stored_files(butler) == registered_files(butler)
    for ref in butler.query_all_datasets(RUN, find_first=False):
        (info,) = butler._datastore.getStoredItemsInfo(ref)  # type: ignore[attr-defined]
        assert info.file_size == butler.getURI(ref).size()


def test_stock_butler_reads_the_same_as_without(make_repo: MakeRepo) -> None:
    contents = {}
    for bundle in (False, True):
        with make_repo(str(bundle)).open() as helper:
            graph = make_graph(helper, Case(_build))
            assert not _run(helper, graph, bundle=bundle, temporary=("x",)).failed
            _assert_sound(helper.butler)
            contents[bundle] = snapshot(helper.butler, graph)
            refs = helper.butler.query_datasets("a_log", collections=RUN)
            messages = [[record.name for record in helper.butler.get(ref)] for ref in refs]
            contents[bundle]["messages", ()] = Counter(map(tuple, messages))
            if bundle:
                (part,) = _parts(helper.butler)
                assert helper.butler.getURI("run_provenance", collections=RUN).path.endswith(part)
    assert contents[True] == contents[False]


@pytest.mark.parametrize(
    ("kind", "temporary"), [("serial", ()), ("serial", ("x", "y")), ("spark", ("x", "y"))], ids=str
)
def test_quantum_costs_a_request_for_each_science_dataset(
    kind: str,
    temporary: tuple[str, ...],
    request: pytest.FixtureRequest,
    s3_server: EmbeddedS3,
    s3_bucket: str,
    s3_repo: Callable[[str], Path],
) -> None:
    backend = SerialBackend() if kind == "serial" else request.getfixturevalue("spark_backend")
    with Butler.from_config(s3_repo("repo"), writeable=True) as butler:
        insert_dimensions(butler, range(1, 5), range(1, 4))
        graph = make_graph(DirectButlerRepo(butler), Case(_build))
        before = Counter(s3_server.count_requests(s3_bucket))
        options = RunOptions(bundle=True, temporary=temporary, group_by="fused" if temporary else "auto")
        result = execute_graph(graph, butler, backend, options)
        counted = Counter(s3_server.count_requests(s3_bucket))
        assert not result.failed
        assert len(_parts(butler)) == 1
    counted.subtract(before)
    automatic = ("_metadata", "_log")

    def science(refs: Iterator[DatasetRef]) -> int:
        names = [ref.datasetType.name for ref in refs]
        return sum(not name.endswith(automatic) and name not in temporary for name in names)

    needed: Counter[str] = Counter()
    for quantum_id, quantum in graph.build_execution_quanta().items():
        mine = {"GET": science(all_inputs(quantum)), "PUT": science(all_outputs(quantum))}
        assert result.outcomes[quantum_id].traffic.requests == dict(+Counter(mine))
        needed.update(mine)
    free = [o.report.taskLabel for o in result.outcomes.values() if not o.traffic.n_requests]
    assert free == (["b"] * 12 if temporary else [])
    counted.subtract(needed)
    # A part, and the graph of the whole run that takes its place; their folder, and that of temporaries.
    assert dict(+counted) == {"PUT": 2, "GET": 1, "DELETE": 1, "LIST": 3 if temporary else 2}


def test_what_other_tasks_read_is_written_as_usual(make_repo: MakeRepo) -> None:
    def build(helper: DirectButlerRepo) -> None:
        _build(helper)
        metadata = _one("a_metadata", storage_class="TaskMetadata", mock_storage_class=False)
        helper.add_task("reader", dimensions=_CCD, inputs={"metadata": metadata})

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(build))
        assert not _run(helper, graph).failed
        _assert_sound(helper.butler)
        names = Counter(name.split("/")[2] for name in stored_files(helper.butler))
        assert names["a_metadata"] == names["a_log"] == 4
        assert not names.keys() & {"b_metadata", "b_log", "reader_metadata", "reader_log"}
        assert len(_parts(helper.butler)) == 1
        assert len(look(_pack(helper.butler))) == len(graph)


def _pack(butler: Butler) -> str:
    return butler.getURI("run_provenance", collections=RUN).ospath


def test_failed_quantum_is_taken_up_again(make_repo: MakeRepo, tmp_path: Path) -> None:
    config = CallConfig(number=-1, folder=str(tmp_path), fail_condition="visit=1 AND detector=2")
    with make_repo("repo").open() as helper:
        trouble = {"b": {"task_class": FailOnceTask, "config": config}}
        graph = make_graph(helper, Case(lambda h: _build(h, **trouble)))
        first = _run(helper, graph)
        assert (len(first.failed), len(first.blocked)) == (1, 1)
        _assert_sound(helper.butler)
        registered = helper.butler.query_all_datasets(RUN, find_first=False)
        assert "run_provenance" not in {ref.datasetType.name for ref in registered}
        data_id = {"instrument": "Cam1", "visit": 1, "detector": 2}
        log = helper.butler.get("b_log", data_id, collections=RUN)
        assert any("attempt 1" in record.message for record in log)
        assert needs_clobber(helper.butler, graph)
        second = _run(helper, graph, skip_existing=True, clobber_outputs=True)
        assert not second.failed
        assert len(second.outcomes) == 2
        _assert_sound(helper.butler)
        assert len(_parts(helper.butler)) == 1
        log = helper.butler.get("b_log", data_id, collections=RUN)
        assert not any("attempt 1" in record.message for record in log)
        seen = look_at(_pack(helper.butler), "b", 1, 2)
        assert [(status, log, metadata) for status, _, log, metadata in seen.attempts] == [
            ("FAILED", True, True),
            ("SUCCESSFUL", True, True),
        ]


def _die_after(monkeypatch: pytest.MonkeyPatch, n_batches: int) -> None:
    """Let a driver tell nobody of what it takes after some batches, as if it were dead."""
    flush = Ingester.flush
    left = n_batches

    def stop(self: Ingester) -> None:
        nonlocal left
        if self.n_pending:
            left -= 1
        if left >= 0:
            flush(self)

    monkeypatch.setattr(Ingester, "flush", stop)


@pytest.mark.parametrize("bundle_again", [True, False])
def test_run_of_a_dead_driver_goes_on(
    bundle_again: bool, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        with monkeypatch.context() as patch:
            patch.setattr(engine, "BUNDLE_SECONDS", 0.0)
            _die_after(patch, 3)
            _run(helper, graph)
        helper.butler.registry.refresh()
        parts = _parts(helper.butler)
        assert len(parts) == 3
        n_done = len(helper.butler.query_all_datasets(RUN, name="*_metadata", find_first=False))
        assert 3 <= n_done < len(graph)
        # One that was written, and of which the registry was not told.
        (root,) = helper.butler.get_datastore_roots().values()
        assert root is not None
        root.join(RUN).join("bundle/orphan.qg").write(b"")
        assert not needs_clobber(helper.butler, graph)
        again = _run(helper, graph, bundle=bundle_again, skip_existing=True)
        assert not again.failed
        assert len(again.outcomes) == len(graph) - n_done
        _assert_sound(helper.butler)
        assert len(_parts(helper.butler)) == (1 if bundle_again else 3)
        contents = snapshot(helper.butler, graph)
    with make_repo("undisturbed").open() as helper:
        graph = make_graph(helper, Case(_build))
        assert not _run(helper, graph, bundle=False).failed
        expected = snapshot(helper.butler, graph)
    contents.pop(("run_provenance", ()), None)
    assert contents == expected


class _Forgetful(BackendAround):
    """Loses all that the first job has sent."""

    def __init__(self, inner: Backend):
        super().__init__(inner)
        self._calls = 0

    def run(self, context: Any, batch: Any, report: Any) -> None:
        self._calls += 1
        if self._calls == 1:
            super().run(context, batch, lambda outcome: None)
            raise OSError("lost")
        super().run(context, batch, report)

    def is_alive(self) -> bool:
        # Docstring inherited.
        return True


def test_group_that_was_lost_is_run_again(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        result = _run(helper, graph, _Forgetful(SerialBackend()))
        assert not result.failed
        assert not any(outcome.recovered for outcome in result.outcomes.values())
        _assert_sound(helper.butler)
        assert {each.status for each in look(_pack(helper.butler)).values()} == {"SUCCESSFUL"}


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_quantum_that_ran_again_keeps_its_success(ends: str, make_repo: MakeRepo) -> None:
    def meddle(outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        yield outcome
        if ends == "well":
            yield outcome
        else:
            yield dataclasses.replace(
                outcome,
                status=QuantumAttemptStatus.FAILED,
                kind=FailureKind.TASK,
                outputs=(),
                bundled=outcome.bundled[:1],
                scan=empty_scan(QuantumAttemptStatus.FAILED).to_bytes(),
            )

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        result = _run(helper, graph, Meddler(meddle))
        assert not result.failed
        _assert_sound(helper.butler)
        assert len(helper.butler.query_all_datasets(RUN, name="*_metadata", find_first=False)) == len(graph)
        snapshot(helper.butler, graph)


def test_what_is_too_large_to_travel_is_written_as_usual(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "MAX_SCAN_BYTES", 10)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        assert not _run(helper, graph).failed
        _assert_sound(helper.butler)
        assert _parts(helper.butler) == []
        names = [name for name, _ in snapshot(helper.butler, graph)]
        assert sum(name.endswith(("_metadata", "_log")) for name in names) == 2 * len(graph)


def test_finished_run_is_done_all_over_again(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        contents = []
        for options in ({}, {"clobber_outputs": True}, {"clobber_outputs": True, "bundle": False}):
            assert len(_run(helper, graph, **options).outcomes) == len(graph)
            helper.butler.registry.refresh()
            contents.append(snapshot(helper.butler, graph))
            _assert_sound(helper.butler)
        assert contents[0] == contents[1] == contents[2]


def test_provenance_graph_is_the_same_with_a_bundle(make_repo: MakeRepo, tmp_path: Path) -> None:
    path = tmp_path / "ours.qg"
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        for _ in range(2):
            # The second time, all is read from the pack.
            with ProvenanceRecorder(graph, path, butler=helper.butler) as recorder:
                options = RunOptions(bundle=True, skip_existing=True)
                recorder.finish(
                    execute_graph(graph, helper.butler, SerialBackend(), options, recorder=recorder)
                )
            helper.butler.registry.refresh()
            assert look(path) == look(_pack(helper.butler))
            path.unlink()


def test_log_of_an_attempt_before_is_kept(make_repo: MakeRepo, tmp_path: Path) -> None:
    config = TroubleConfig(troubles={"2": "store"}, folder=str(tmp_path))
    with make_repo("repo").open() as helper:
        trouble = {"b": {"task_class": TroubleTask, "config": config}}
        graph = make_graph(helper, Case(lambda h: _build(h, **trouble)))
        result = _run(helper, graph)
        assert sorted(len(o.attempts) for o in result.outcomes.values()) == [0] * 9 + [1]
        _assert_sound(helper.butler)
        counts = Counter(len(each.attempts) for each in look(_pack(helper.butler)).values())
        assert counts == {1: 9, 2: 1}
