"""A run goes on from what is there: what is finished is adopted, what is not is done again."""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import astropy.units as u
import pytest
import sqlalchemy.event
from astropy.time import Time
from lsst.daf.butler import Butler, DatasetIdFactory, DatasetIdGenEnum, DatasetRef
from lsst.daf.butler.time_utils import TimeConverter
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph, PredictedQuantumGraphComponents
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicConnectionConfig,
    DynamicTestPipelineTaskConfig,
)
from lsst.resources import ResourcePath

from spark_butler.datastore import files as files_module
from spark_butler.datastore.files import list_files
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.resume import needs_clobber
from spark_butler.driver.serial import SerialBackend
from spark_butler.errors import EngineError, PlanError, RepositoryError
from spark_butler.model.options import RunOptions
from spark_butler.model.outcomes import RunResult
from spark_butler.planning.dataset_ids import settle_dataset_ids
from spark_butler.repository import output_ingest as registry
from spark_butler.repository.collection_notes import read_temporaries, record_temporaries
from spark_butler.repository.database_retry import retry_database
from spark_butler.repository.output_ingest import Ingester, IngestStream
from tests.support.engine_harness import (
    RUN,
    Case,
    Repo,
    make_graph,
    registered_files,
    snapshot,
    stored_files,
)
from tests.support.engine_tasks import CallConfig, FailOnceTask

MakeRepo = Callable[[str], Repo]

_CCD = ["visit", "detector"]
_ALL = {(label, visit, detector) for label in "abc" for visit in (1, 2) for detector in (1, 2)}


def _connection(name: str) -> dict[str, DynamicConnectionConfig]:
    return {name: DynamicConnectionConfig(dataset_type_name=name, dimensions=_CCD)}


def _build(helper: DirectButlerRepo, **tasks: Any) -> None:
    """Three tasks in a row, which make x and r, y, and z."""
    made: dict[str, Any] = {
        "a": ({}, {**_connection("x"), **_connection("r")}),
        "b": ("x", "y"),
        "c": ("y", "z"),
    }
    for label, (inputs, outputs) in made.items():
        more = dict(tasks.get(label, {}))
        if isinstance(inputs, str):
            more |= {"inputs": _connection(inputs)}
        helper.add_task(
            label,
            dimensions=_CCD,
            outputs=_connection(outputs) if isinstance(outputs, str) else outputs,
            **more,
        )


def _run(
    helper: DirectButlerRepo, graph: PredictedQuantumGraph, backend: Any = None, **more: Any
) -> RunResult:
    return execute_graph(graph, helper.butler, backend or SerialBackend(), RunOptions(**more))


def _resume(helper: DirectButlerRepo, graph: PredictedQuantumGraph, **more: Any) -> set[tuple[str, int, int]]:
    """Go on with a run, which must succeed, and say which quanta ran."""
    result = _run(helper, graph, **{"skip_existing": True, **more})
    assert not result.failed, [outcome.report.exceptionInfo for outcome in result.failed]
    return _ran(graph, result)


def _ran(graph: PredictedQuantumGraph, result: RunResult) -> set[tuple[str, int, int]]:
    nodes = (graph.quantum_only_xgraph.nodes[quantum_id] for quantum_id in result.outcomes)
    return {(node["task_label"], node["data_id"]["visit"], node["data_id"]["detector"]) for node in nodes}


def _refs(helper: DirectButlerRepo, names: str, visit: int, detector: int) -> list[DatasetRef]:
    """References of registered outputs of one detector: a space between names of dataset types."""
    found = helper.butler.query_all_datasets(RUN, name=names.split(), find_first=False)
    return [
        ref
        for ref in found
        if dict(ref.dataId.required) | {"visit": visit, "detector": detector} == dict(ref.dataId.required)
    ]


def _forget(helper: DirectButlerRepo, refs: Iterable[DatasetRef]) -> None:
    """Leave the registry as if its driver had died before some datasets were ingested."""
    refs = list(refs)
    with helper.butler.transaction():
        helper.butler._datastore.forget(refs)
        helper.butler.registry.removeDatasets(refs)


def _assert_sound(helper: DirectButlerRepo, graph: PredictedQuantumGraph) -> dict[Any, Any]:
    """Every file is registered with its size, and everything registered can be read."""
    helper.butler.registry.refresh()
    assert stored_files(helper.butler) == registered_files(helper.butler)
    refs = helper.butler.query_all_datasets(RUN, find_first=False)
    for ref in refs:
        (info,) = helper.butler._datastore.getStoredItemsInfo(ref)  # type: ignore[attr-defined]
        assert info.file_size == helper.butler.getURI(ref).size()
    return snapshot(helper.butler, graph)


_B = "y b_metadata b_log"
_C = "z c_metadata c_log"


@pytest.fixture(params=["list", "ask"])
def way_to_look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Look for files by listing a folder, or one by one."""
    monkeypatch.setattr(files_module, "_KEYS_PER_REQUEST", 1000 if request.param == "list" else 0)
    return str(request.param)


def test_only_what_is_not_finished_runs_again(make_repo: MakeRepo, way_to_look: str) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        _run(helper, graph)
        contents = _assert_sound(helper, graph)
        # Finished, but the driver died before it knew.
        finished = _refs(helper, f"{_B} {_C}", 1, 1) + _refs(helper, _C, 1, 2)
        # Metadata is not all that is written last.
        without_log = _refs(helper, _C, 2, 1)
        # Died between the output and the metadata.
        half = _refs(helper, f"{_B} {_C}", 2, 2)
        removed = _refs(helper, "c_log", 2, 1) + _refs(helper, f"b_metadata b_log {_C}", 2, 2)
        uris = [helper.butler.getURI(ref) for ref in removed]
        _forget(helper, [*finished, *without_log, *half])
        for uri in uris:
            uri.remove()
        assert not needs_clobber(helper.butler, graph)
        assert _resume(helper, graph) == {("c", 2, 1), ("b", 2, 2), ("c", 2, 2)}
        assert _assert_sound(helper, graph) == contents
        assert _resume(helper, graph) == set()


def test_resumed_run_can_be_grouped_by_dimensions_of_finished_tasks(make_repo: MakeRepo) -> None:
    def build(helper: DirectButlerRepo) -> None:
        many = DynamicConnectionConfig(dataset_type_name="x", dimensions=_CCD, multiple=True)
        helper.add_task("a", dimensions=_CCD, outputs=_connection("x"))
        helper.add_task("gather", dimensions=["detector"], inputs={"x": many})

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(build))
        options = {"group_by": ("visit",), "temporary": ()}
        assert not _run(helper, graph, **options).failed
        last = helper.butler.query_all_datasets(RUN, name="gather_*", where="detector=1", instrument="Cam1")
        uris = [helper.butler.getURI(ref) for ref in last]
        _forget(helper, last)
        for uri in uris:
            uri.remove()
        result = _run(helper, graph, skip_existing=True, clobber_outputs=True, **options)
        assert not result.failed
        (outcome,) = result.outcomes.values()
        assert outcome.report.taskLabel == "gather"
        with pytest.raises(PlanError, match="Can't group by nonsense"):
            _run(helper, graph, group_by=("nonsense",))


def test_registered_output_without_file_is_made_again(make_repo: MakeRepo) -> None:
    """A driver may die after a worker has cleared the way for another attempt at a failed quantum."""
    config = DynamicTestPipelineTaskConfig(fail_condition="visit=1 AND detector=2")
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _build(h, b={"config": config})))
        assert len(_run(helper, graph).failed) == 1
        assert needs_clobber(helper.butler, graph)
        (log,) = _refs(helper, "b_log", 1, 2)
        helper.butler.getURI(log).remove()
        second = _run(helper, graph, skip_existing=True)
        assert _ran(graph, second) == {("b", 1, 2)}
        (failed,) = second.failed
        assert failed.report.exceptionInfo is not None
        assert "Simulated failure" in failed.report.exceptionInfo.message
        _assert_sound(helper, graph)


def test_file_of_type_that_became_temporary_is_removed(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        _run(helper, graph)
        contents = _assert_sound(helper, graph)
        lost = _refs(helper, f"{_B} {_C}", 1, 1)
        uris = [helper.butler.getURI(ref) for ref in lost if ref.datasetType.name != "y"]
        _forget(helper, lost)
        for uri in uris:
            uri.remove()
        assert _resume(helper, graph, temporary=("y",)) == {("b", 1, 1), ("c", 1, 1)}
        del contents["y", ("Cam1", 1, 1)]
        assert _assert_sound(helper, graph) == contents


def test_type_that_was_temporary_is_made_when_it_is_to_be_stored(make_repo: MakeRepo) -> None:
    idle = {"fail_condition": "visit=2 AND detector=2", "fail_exception": "lsst.pipe.base.NoWorkFound"}
    case = Case(lambda h: _build(h, a={"config": DynamicTestPipelineTaskConfig(**idle)}))
    with make_repo("reference").open() as helper:
        graph = make_graph(helper, case)
        _run(helper, graph)
        expected = _assert_sound(helper, graph)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, case)
        _run(helper, graph, temporary=("x",))
        assert read_temporaries(helper.butler, [RUN, "no/run"]) == {"x"}
        lost = [
            (ref, helper.butler.getURI(ref))
            for ref in (*_refs(helper, _C, 1, 1), *_refs(helper, "b_metadata", 1, 1))
        ]
        _forget(helper, [ref for ref, _ in lost])
        for _, uri in lost:
            uri.remove()
        # The log of b is registered, its metadata isn't: it stands in the way as a failure would.
        again = _resume(helper, graph, clobber_outputs=True)
        made = {("a", visit, detector) for visit, detector in ((1, 1), (1, 2), (2, 1))}
        assert again == {*made, ("b", 1, 1), ("c", 1, 1)}
        assert _assert_sound(helper, graph) == expected
        assert _resume(helper, graph) == set()


def test_outputs_are_safe_while_a_temporary_is_made_again(make_repo: MakeRepo, tmp_path: Path) -> None:
    """Quanta that have succeeded lose nothing when they fail to do so again."""
    counts = tmp_path / "counts"
    counts.mkdir()
    maker = {
        "task_class": FailOnceTask,
        "config": CallConfig(fail_condition="visit>0", number=2, folder=str(counts)),
    }
    failing = {"config": DynamicTestPipelineTaskConfig(fail_condition="visit=1 AND detector=1")}
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(lambda h: _build(h, a=maker, b=failing)))
        _run(helper, graph, temporary=("x",))
        before = _assert_sound(helper, graph)
        second = _run(helper, graph, temporary=("x",), skip_existing=True, clobber_outputs=True)
        assert _ran(graph, second) == {("a", 1, 1)}
        assert len(second.failed) == 1
        assert _assert_sound(helper, graph) == before
        assert {"r", "a_metadata"} <= {name for name, data_id in before if data_id == ("Cam1", 1, 1)}


def test_sizes_are_right_after_a_driver_died_while_a_temporary_was_made_again(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        _run(helper, graph, temporary=("x",))
        contents = _assert_sound(helper, graph)
        lost = [(ref, helper.butler.getURI(ref)) for ref in _refs(helper, f"{_B} {_C}", 1, 1)]
        _forget(helper, [ref for ref, _ in lost])
        # It was at c, after a and b: only b is not to run again.
        for ref, uri in lost:
            if ref.datasetType.name in _C.split():
                uri.remove()
        (log,) = _refs(helper, "a_log", 1, 1)
        _pad(helper.butler.getURI(log))
        assert _resume(helper, graph, temporary=("x",)) == {("c", 1, 1)}
        assert _assert_sound(helper, graph) == contents


def _pad(uri: ResourcePath) -> None:
    """Make a JSON file longer, as another attempt at the same quantum might."""
    uri.write(uri.read() + b"\n  ")


class _HauntedBackend(SerialBackend):
    """Has attempts that were given up, and write after those that took their places."""

    def __init__(self, butler: Butler):
        super().__init__()
        self._butler = butler

    def run(self, context: Any, batch: Any, report: Any) -> None:
        super().run(context, batch, report)
        (root,) = self._butler.get_datastore_roots().values()
        assert root is not None
        for path in list_files(root.join(RUN, forceDirectory=True)):
            if path.startswith(("b_log/", "c_metadata/")):
                _pad(root.join(f"{RUN}/{path}"))


def test_sizes_are_right_after_a_lost_attempt_wrote_last(make_repo: MakeRepo) -> None:
    import dataclasses

    class Backend(_HauntedBackend):
        def run(self, context: Any, batch: Any, report: Any) -> None:
            super().run(context, batch, lambda each: report(dataclasses.replace(each, again=True)))

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        _run(helper, graph, Backend(helper.butler))
        assert len(_assert_sound(helper, graph)) > 40


def test_temporaries_of_a_run_are_recorded_beside_its_reports(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        butler = helper.butler
        butler.collections.register("some/run", doc="Mine.")
        assert read_temporaries(butler, ["some/run", "no/run"]) == frozenset()
        record_temporaries(butler, "some/run", ["y", "x"])
        record_temporaries(butler, "some/run", ["z", "x"])
        record_temporaries(butler, "some/run", [])
        assert read_temporaries(butler, ["some/run", "no/run"]) == {"x", "y", "z"}
        assert butler.registry.getCollectionDocumentation("some/run") == "Mine."


def test_temporaries_in_the_documentation_of_a_run_are_read(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        butler = helper.butler
        doc = "Mine.\nNot retained in this run, or not always: x, y\nAll of it."
        butler.collections.register("some/run", doc=doc)
        assert read_temporaries(butler, ["some/run"]) == {"x", "y"}
        record_temporaries(butler, "some/run", ["z"])
        assert read_temporaries(butler, ["some/run"]) == {"x", "y", "z"}
        assert butler.registry.getCollectionDocumentation("some/run") == doc


def test_resume_is_refused_where_notes_cannot_be_read(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        _run(helper, graph, temporary=("x",))
        (root,) = helper.butler.get_datastore_roots().values()
        assert root is not None
        folder = root.join(f"spark-butler-reports/{RUN}/")
        assert json.loads(folder.join("notes.json").read())["temporaries"] == ["x"]
        assert [uri.basename() for uri in ResourcePath.findFileResources([folder])] == ["notes.json"]
        folder.join("notes.json").write(b"{")
        before = _assert_sound(helper, graph)
        with pytest.raises(RepositoryError, match="notes of an output run, .*notes.json, can't be read"):
            _resume(helper, graph)
        assert _assert_sound(helper, graph) == before


def _make_components(helper: DirectButlerRepo) -> PredictedQuantumGraphComponents:
    builder = AllDimensionsQuantumGraphBuilder(
        helper.pipeline_graph,
        helper.butler,
        input_collections=[helper.input_chain],
        output_run=RUN,
        clobber=True,
    )
    return builder.finish()


def test_rebuilt_graph_has_the_same_dataset_ids(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        _build(helper)
        helper.add_task(
            "d",
            dimensions=["visit"],
            inputs={"in": DynamicConnectionConfig(dataset_type_name="z", dimensions=_CCD, multiple=True)},
        )
        make_graph(helper, Case(lambda h: None))
        first, random = _make_components(helper), _make_components(helper)
        kept = next(iter(random.quantum_datasets.values())).outputs["_metadata"][0].dataset_id
        second = _make_components(helper)
        settle_dataset_ids(first)
        settle_dataset_ids(second)
        settle_dataset_ids(random, keep={kept})
        graph, again = first.assemble(), second.assemble()
        assert _describe(graph) == _describe(again)
        different = {
            key for key, value in _describe(random.assemble())[0].items() if value != _describe(graph)[0][key]
        }
        assert len(different) == 1
        factory = DatasetIdFactory()
        quanta = graph.build_execution_quanta()
        made = {ref.id: ref for q in quanta.values() for refs in q.outputs.values() for ref in refs}
        for ref in made.values():
            assert ref.id == factory.makeDatasetId(
                RUN, ref.datasetType, ref.dataId, DatasetIdGenEnum.DATAID_TYPE_RUN
            )
        read = {ref.id for q in quanta.values() for refs in q.inputs.values() for ref in refs}
        assert len(read & made.keys()) == 12
        assert graph.header.n_datasets == len(
            made.keys() | read | {each.dataset_id for q in first.init_quanta.root for each in _init(q)}
        )


def _init(quantum: Any) -> Iterable[Any]:
    return itertools.chain.from_iterable((*quantum.inputs.values(), *quantum.outputs.values()))


def _describe(graph: PredictedQuantumGraph) -> tuple[dict[Any, uuid.UUID], set[Any], set[Any]]:
    """All datasets with their IDs, and all edges."""
    datasets = {
        (name, data_id.required_values): dataset_id
        for name, found in graph.datasets_by_type.items()
        for data_id, dataset_id in found.items()
    }

    def name(node_id: uuid.UUID) -> Any:
        node = graph.bipartite_xgraph.nodes[node_id]
        return node.get("task_label", node_id), node["data_id"].required_values

    edges = {(name(before), name(after)) for before, after in graph.bipartite_xgraph.edges()}
    quanta = {(name(before), name(after)) for before, after in graph.quantum_only_xgraph.edges()}
    return datasets, edges, quanta


def _ingest_all(helper: DirectButlerRepo, graph: PredictedQuantumGraph) -> list[tuple[Any, ...]]:
    """Run a graph, and leave the registry without its outputs: what an ingester is to be told."""
    result = _run(helper, graph)
    quanta = graph.build_execution_quanta()
    _forget(helper, [ref for ref in helper.butler.query_all_datasets(RUN) if ref.dataId])
    return [
        (
            [ref for refs in quanta[quantum_id].outputs.values() for ref in refs],
            outcome.outputs,
            outcome.records,
        )
        for quantum_id, outcome in result.outcomes.items()
    ]


def test_datasets_are_registered_soon(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_butler.repository.output_ingest._INTERVAL_SECONDS", 0.2)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        first, *others = _ingest_all(helper, graph)
        types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
        with IngestStream(helper.butler, types) as stream:
            stream.add(*first)
            deadline = time.monotonic() + 20
            while not all(helper.butler.registry.getDataset(each) for each in first[1]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for each in others:
                stream.add(*each)
        _assert_sound(helper, graph)
        assert stream.n_ingested == 4 * 10


def test_lag_grows_while_a_dataset_waits(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_butler.repository.output_ingest._INTERVAL_SECONDS", 600)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        first, *_ = _ingest_all(helper, graph)
        types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
        with IngestStream(helper.butler, types) as stream:
            assert stream.lag == 0
            stream.add(*first)
            time.sleep(0.3)
            assert 0.3 <= stream.lag < 600
        assert stream.lag == 0


def _lock(butler: Butler, repo: Repo, seconds: float) -> threading.Thread:
    """Lock the registry's database for a while, for which the butler doesn't wait as long as it would."""
    engine = butler._registry._db._engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "connect", lambda each, _: each.execute("PRAGMA busy_timeout = 20"))
    engine.dispose()
    locked = threading.Event()

    def hold() -> None:
        connection = sqlite3.connect(repo.root / "gen3.sqlite3", isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        locked.set()
        time.sleep(seconds)
        connection.rollback()
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    return thread


def test_locked_registry_is_retried(make_repo: MakeRepo, caplog: pytest.LogCaptureFixture) -> None:
    repo = make_repo("repo")
    with repo.open() as helper:
        graph = make_graph(helper, Case(_build))
        work = _ingest_all(helper, graph)
        types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
        ingester = Ingester(helper.butler, types)
        for each in work:
            ingester.add(*each)
        lock = _lock(helper.butler, repo, 1.0)
        ingester.flush()
        lock.join()
        assert "The registry can't be written to; trying again" in caplog.text
        _assert_sound(helper, graph)


def test_registry_locked_for_long_raises_error_and_loses_nothing(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry_briefly = functools.partial(retry_database, seconds=0.3)
    monkeypatch.setattr("spark_butler.repository.output_ingest.retry_database", retry_briefly)
    repo = make_repo("repo")
    with repo.open() as helper:
        graph = make_graph(helper, Case(_build))
        work = _ingest_all(helper, graph)
        types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
        ingester = Ingester(helper.butler, types)
        for each in work:
            ingester.add(*each)
        lock = _lock(helper.butler, repo, 1.5)
        with pytest.raises(EngineError, match=r"40 datasets .* can't be registered.*locked"):
            ingester.flush()
        lock.join()
        ingester.flush()
        _assert_sound(helper, graph)


def test_ingest_date_is_converted_once_for_a_batch(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter = TimeConverter()
    vars(converter).pop("astropy_to_nsec", None)
    convert, converted = TimeConverter.astropy_to_nsec, Counter[str]()

    def count(self: TimeConverter, astropy_time: Time) -> int:
        converted[str(astropy_time)] += 1
        return convert(self, astropy_time)

    monkeypatch.setattr(TimeConverter, "astropy_to_nsec", count)
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
        ingester = Ingester(helper.butler, types)
        for each in _ingest_all(helper, graph):
            ingester.add(*each)
        converted.clear()
        ingester.flush()
        assert ingester.n_ingested == 40
        # One date for the datasets of each set of dimensions.
        assert set(converted.values()) == {1}
        assert converted.total() <= len(types)
        times = [Time("2026-01-01", scale="tai") + n * u.s for n in (0, 1, 0, 0)]
        nsecs = [converter.astropy_to_nsec(each) for each in times]
        assert [nsec - nsecs[0] for nsec in nsecs] == [0, 10**9, 0, 0]
        _assert_sound(helper, graph)
    del converter.astropy_to_nsec


def test_commit_with_lost_answer_is_not_repeated(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        work = _ingest_all(helper, graph)
        types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
        ingester = Ingester(helper.butler, types)
        for each in work:
            ingester.add(*each)
        write, errors = Ingester._write, [sqlite3.OperationalError("connection lost")]
        refs, records = dict(ingester._refs), dict(ingester._records)

        def write_and_fail(self: Ingester, *, again: bool) -> None:
            write(self, again=again)
            if errors:
                # As if the word of the commit had not come.
                self._refs, self._records, self._existing = refs, records, set()
                raise sqlalchemy.exc.OperationalError("COMMIT", None, errors.pop())

        monkeypatch.setattr(Ingester, "_write", write_and_fail)
        ingester.flush()
        _assert_sound(helper, graph)


def test_registry_error_ends_the_run(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_INTERVAL_SECONDS", 0.0)

    def refuse(self: Ingester, *, again: bool) -> None:
        raise ValueError("no such thing")

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        with monkeypatch.context() as patch:
            patch.setattr(Ingester, "_write", refuse)
            with pytest.raises(EngineError, match="can't be registered: ValueError: no such thing"):
                _run(helper, graph)
        assert len(_resume(helper, graph)) < 12
        _assert_sound(helper, graph)


def test_files_are_listed_page_by_page(s3_bucket: str, s3_server: Any) -> None:
    folder = ResourcePath(f"s3://{s3_bucket}/some/folder/")
    sizes = {f"{kind}/{n}/{kind}.json": n + 1 for kind in ("one", "two") for n in range(4)} | {"top.json": 3}
    for path, size in sizes.items():
        folder.join(path).write(b"x" * size)
    ResourcePath(f"s3://{s3_bucket}/some/folder-2/other.json").write(b"x")
    assert list_files(folder) == sizes
    assert list_files(folder, page_size=2) == sizes
    assert list_files(folder.join("nothing/", forceDirectory=True)) == {}
