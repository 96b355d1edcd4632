"""Private API of other libraries that the seam modules use: a test for each use.

A failure here means that a new release of the library has changed it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from astropy.time import Time
from lsst.daf.butler import Butler, ButlerConfig, DatasetRef, DatasetType
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.direct_butler import DirectButler
from lsst.daf.butler.registry.interfaces import FakeDatasetRef
from lsst.daf.butler.time_utils import TimeConverter
from lsst.pipe.base import PipelineTask
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.pipe.base.tests.mocks import InMemoryRepo
from lsst.resources import ResourcePath
from lsst.resources.s3 import S3ResourcePath
from lsst.resources.s3utils import getS3Client

from spark_butler import _daf_butler, _lsst_resources, _pipe_base

_RUN = "run"


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectButler]:
    """A butler of a repository with one dataset."""
    root = str(tmp_path_factory.mktemp("repo"))
    Butler.makeRepo(root)
    with Butler.from_config(root, run=_RUN) as butler:
        assert isinstance(butler, DirectButler)
        butler.registry.registerDatasetType(
            DatasetType("note", butler.dimensions.empty, "StructuredDataDict", universe=butler.dimensions)
        )
        butler.put({"a": 1}, "note")
        yield butler


@pytest.fixture
def note(butler: DirectButler) -> DatasetRef:
    ref = butler.find_dataset("note", collections=_RUN)
    assert ref is not None
    return ref


def _store(butler: Butler) -> FileDatastore:
    store = _daf_butler.datastore_of(butler)
    assert isinstance(store, FileDatastore)
    return store


def test_butler_has_a_datastore(butler: DirectButler) -> None:
    assert _store(butler).names == butler.get_datastore_names()


def test_records_of_a_dataset_are_exported(butler: DirectButler, note: DatasetRef) -> None:
    ((name, data),) = _daf_butler.export_records(butler, [note]).items()
    assert (name,) == butler.get_datastore_names()
    assert list(data.records) == [note.id]


def test_files_to_transfer_are_found(butler: DirectButler, note: DatasetRef) -> None:
    ((address, info),) = _daf_butler.find_transfer_files(butler, [note])[note.id]
    assert address == butler.getURI(note)
    assert info.file_size == address.size()


def test_table_of_records_is_found_by_its_name_and_asked(butler: DirectButler, note: DatasetRef) -> None:
    table = _daf_butler.record_table(_store(butler))
    ((name, _),) = _daf_butler.export_records(butler, [note])[_store(butler).name].records[note.id].items()
    assert table.name == name
    (row,) = table.fetch(dataset_id=[note.id])
    assert Path(row["path"]).suffix == ".json" or Path(row["path"]).suffix == ".yaml"


def test_butler_has_a_configuration_with_root_and_registry(butler: DirectButler) -> None:
    config = _daf_butler.butler_config(butler)
    assert isinstance(config, ButlerConfig)
    assert config.configDir is not None
    assert "registry" in config


def test_ids_of_a_run_are_fetched(butler: DirectButler, note: DatasetRef) -> None:
    assert _daf_butler.fetch_run_ids(butler, _RUN) == {note.id}
    assert _daf_butler.fetch_run_ids(butler, "no/such/run") == frozenset()


@pytest.mark.parametrize("assume_new", [True, False])
def test_dataset_is_registered_with_its_id(butler: DirectButler, note: DatasetRef, assume_new: bool) -> None:
    run = f"imported/{assume_new}"
    butler.collections.register(run)
    ref = DatasetRef(note.datasetType, note.dataId, run=run, id=uuid.uuid4())
    for _ in range(1 if assume_new else 2):
        _daf_butler.import_datasets(butler, [ref], assume_new=assume_new)
    assert _daf_butler.fetch_run_ids(butler, run) == {ref.id}


def test_trusting_datastore_looks_for_a_file_without_record(butler: DirectButler, note: DatasetRef) -> None:
    with butler.clone(run="trusted") as other:
        ref = DatasetRef(note.datasetType, note.dataId, run="trusted")
        store = _store(other)
        uri = store.getURI(ref, predict=True)
        uri.write(b'{"b": 2}' if uri.getExtension() == ".json" else b"b: 2")
        assert not store.exists(ref)
        _daf_butler.trust_files_without_records(store)
        assert store.exists(ref)


def test_converter_of_times_remembers_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    converter = TimeConverter()
    plain = type(converter).astropy_to_nsec
    calls = []

    def counting(time: Time) -> int:
        calls.append(time)
        return plain(converter, time)

    monkeypatch.setattr(converter, "astropy_to_nsec", counting)
    _daf_butler.remember_last_time()
    time = Time("2026-11-29", scale="tai")
    assert converter.astropy_to_nsec(time) == converter.astropy_to_nsec(time) == plain(converter, time)
    assert len(calls) == 1
    # The converter that everyone else gets is the same one.
    assert TimeConverter() is converter


def test_bridge_forgets_what_is_in_trash() -> None:
    one, two = (FakeDatasetRef(uuid.uuid4()) for _ in range(2))
    bridge = _daf_butler.MemoryBridge("store")
    bridge.insert([one, two])
    bridge.moveToTrash([one], transaction=None)
    assert bridge.check([one.id, two.id]) == {two.id}


def test_bucket_of_an_object() -> None:
    for address in ("s3://bucket/a/b", "s3://profile@bucket/a/b"):
        uri = ResourcePath(address)
        assert isinstance(uri, S3ResourcePath)
        assert _lsst_resources.bucket_of(uri) == "bucket"


def test_connection_parameters_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSST_RESOURCES_S3_PROFILE_other", "http://key:secret@127.0.0.1:9")
    uri = ResourcePath("s3://other@bucket/a")
    assert isinstance(uri, S3ResourcePath)
    parameters = _lsst_resources.connection_parameters(uri)
    assert parameters.endpoint_url == "http://127.0.0.1:9"
    assert (parameters.access_key_id, parameters.secret_access_key) == ("key", "secret")


def test_clients_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    client = cast(Any, getS3Client())
    assert getS3Client() is client
    _lsst_resources.forget_s3_clients()
    assert getS3Client() is not client


@pytest.fixture(scope="module")
def graph() -> PredictedQuantumGraph:
    """A predicted graph of two quanta, the second after the first."""
    repo = InMemoryRepo("base.yaml")
    repo.add_task("first", dimensions=["detector"])
    repo.add_task("second", dimensions=["detector"])
    builder = repo.make_quantum_graph_builder(output_run=_RUN)
    return builder.finish(attach_datastore_records=False).assemble()


def test_graph_has_predicted_datasets_of_its_quanta(graph: PredictedQuantumGraph) -> None:
    datasets = _pipe_base.quantum_datasets(graph)
    assert datasets.keys() == set(graph.quantum_only_xgraph)
    assert all(quantum.outputs for quantum in datasets.values())


def test_graph_has_init_outputs_of_its_tasks(graph: PredictedQuantumGraph) -> None:
    assert {"first", "second"} <= _pipe_base.init_quanta(graph).keys()


def test_graph_has_a_summary(graph: PredictedQuantumGraph) -> None:
    summary = _pipe_base.make_summary(graph)
    assert set(summary.qgraphTaskSummaries) == {"first", "second"}


def test_executor_adds_the_edges_of_a_fixup(butler: DirectButler, graph: PredictedQuantumGraph) -> None:
    executor = MPGraphExecutor(num_proc=1, timeout=1.0, quantum_executor=SingleQuantumExecutor(butler=butler))
    xgraph = _pipe_base.make_xgraph(executor, graph, None)
    assert set(xgraph) == set(graph.quantum_only_xgraph)


def test_executor_gives_its_butlers(butler: DirectButler) -> None:
    own, factory = _pipe_base.butlers_of(SingleQuantumExecutor(butler=butler))
    assert own is butler
    assert factory is None


def test_executor_takes_the_quanta_that_ran_before(butler: DirectButler) -> None:
    executor = SingleQuantumExecutor(butler=butler)
    before = [uuid.uuid4()]
    _pipe_base.name_previous_quanta(executor, before)
    assert executor._previous_process_quanta == before


def test_task_class_has_a_default_label() -> None:
    class CellTask(PipelineTask):
        _DefaultName = "cell"

    assert _pipe_base.default_label(CellTask) == "cell"


def test_graph_fixup_is_imported_by_name() -> None:
    assert _pipe_base.import_graph_fixup("") is None
    with pytest.raises(ValueError, match="import graph fixup"):
        _pipe_base.import_graph_fixup("no.such.module.Fixup")


def test_provenance_graph_files_have_the_known_parts() -> None:
    assert (_pipe_base.METADATA_MB_NAME, _pipe_base.LOG_MB_NAME) == ("metadata", "logs")
    assert _pipe_base.METADATA_ADDRESS_INDEX != _pipe_base.LOG_ADDRESS_INDEX
    assert {"metadata_id", "log_id"} <= _pipe_base.ProvenanceQuantumInfo.__annotations__.keys()
