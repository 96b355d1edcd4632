"""Requests to the object store: one GET for each input, one PUT for each output."""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ProfileNotFound
from lsst.daf.butler import Butler, StorageClass
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.formatters.json import JsonFormatter
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.tests.mocks import DirectButlerRepo, DynamicConnectionConfig
from lsst.resources import ResourcePath
from lsst.resources.s3 import S3ResourcePath

from spark_butler.datastore.file_cache import FileCache
from spark_butler.datastore.s3_clients import S3Clients
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.driver.backend import Backend
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import RunOptions
from spark_butler.model.work import all_inputs, all_outputs
from tests.support.engine_harness import Case, make_graph
from tests.support.mock_night import insert_dimensions

_CCD = ("visit", "detector")


def _build(helper: DirectButlerRepo) -> None:
    """Chains, and a gather for each visit."""
    many = DynamicConnectionConfig(dataset_type_name="cleaned", dimensions=_CCD, multiple=True)
    helper.add_task("isr", dimensions=_CCD, outputs={"out": _one("cleaned", _CCD)})
    helper.add_task("calibrate", dimensions=_CCD, inputs={"in": _one("cleaned", _CCD)})
    helper.add_task("gather", dimensions=("visit",), inputs={"in": many})


def _one(name: str, dimensions: tuple[str, ...]) -> DynamicConnectionConfig:
    return DynamicConnectionConfig(dataset_type_name=name, dimensions=dimensions)


def _graph(repo: Path) -> tuple[Butler, PredictedQuantumGraph]:
    butler = Butler.from_config(repo, writeable=True)
    insert_dimensions(butler, range(1, 5), range(1, 4))
    return butler, make_graph(DirectButlerRepo(butler), Case(_build))


@pytest.mark.parametrize("temporary", [(), ("cleaned",)], ids=["stored", "temporary"])
def test_run_sends_no_redundant_request(
    temporary: tuple[str, ...],
    backend: Backend,
    s3_server: EmbeddedS3,
    s3_bucket: str,
    s3_repo: Callable[[str], Path],
) -> None:
    butler, graph = _graph(s3_repo("repo"))
    with butler:
        before = Counter(s3_server.count_requests(s3_bucket))
        result = execute_graph(
            graph, butler, backend, RunOptions(temporary=temporary, group_by="fused" if temporary else "auto")
        )
        counted = Counter(s3_server.count_requests(s3_bucket))
        assert not result.failed
    counted.subtract(before)
    quanta = graph.build_execution_quanta().values()
    absent = set(temporary)
    n_inputs = sum(ref.datasetType.name not in absent for quantum in quanta for ref in all_inputs(quantum))
    n_outputs = sum(ref.datasetType.name not in absent for quantum in quanta for ref in all_outputs(quantum))
    n_asked = 0
    if temporary:
        # At the end, the driver looks for temporaries that a shuffle could not take.
        assert counted.pop("LIST") == 1
        # Where Spark may repeat a stage, each sender asks once whether this is the first time.
        n_asked = 0 if isinstance(backend, SerialBackend) else 12
    # The driver reads and writes the file that lists the dataset types that are not kept.
    n_notes = len(temporary)
    assert dict(+counted) == {"GET": n_inputs + n_asked + n_notes, "PUT": n_outputs + n_notes}
    traffic = [outcome.traffic for outcome in result.outcomes.values()]
    assert sum(each.requests.get("GET", 0) for each in traffic) == n_inputs
    assert sum(each.n_requests for each in traffic) == sum(
        ref.datasetType.name not in absent
        for quantum in quanta
        for refs in (all_inputs(quantum), all_outputs(quantum))
        for ref in refs
    )
    assert all(each.sent > 0 for each in traffic)


def test_shared_input_is_fetched_once_per_worker(
    backend: Backend, s3_server: EmbeddedS3, s3_bucket: str, s3_repo: Callable[[str], Path]
) -> None:
    def build(helper: DirectButlerRepo) -> None:
        flat, raw = _one("flat", ("detector",)), _one("raw", _CCD)
        helper.add_task("isr", dimensions=_CCD, inputs={"raw": raw, "flat": flat})

    butler = Butler.from_config(s3_repo("repo"), writeable=True)
    # Twelve visits of two detectors, one flat for each.
    insert_dimensions(butler, range(1, 13), range(1, 3))
    graph = make_graph(DirectButlerRepo(butler), Case(build))
    with butler:
        before = Counter(s3_server.count_requests(s3_bucket))
        result = execute_graph(graph, butler, backend, RunOptions())
        counted = Counter(s3_server.count_requests(s3_bucket))
    assert not result.failed
    assert len(result.outcomes) == 24
    counted.subtract(before)
    n_flats = counted["GET"] - 24
    # Each of the two workers reads each of the two flats once, if it has use for it.
    assert 2 <= n_flats <= 2 * backend.slots
    assert sum(outcome.traffic.requests["GET"] for outcome in result.outcomes.values()) == 24


def test_cached_file_is_read_without_a_request(s3_bucket: str) -> None:
    store, dataset_id = ResourcePath(f"s3://{s3_bucket}/held/"), uuid.uuid4()
    content = bytes(range(200)) * 50_000
    file = store.join("a flat+1.fits")
    clients = S3Clients()
    clients.open([str(store)])
    file.write(content)
    info = StoredFileInfo(JsonFormatter, "a flat+1.fits", StorageClass("Image"), None, None, len(content))
    # No room, no memory.
    clients.cache_files(str(store), {dataset_id: info}, len(content) - 1)
    before = clients.traffic
    assert file.read() == content
    assert (clients.traffic - before).requests == {"GET": 1}
    clients.cache_files(str(store), {dataset_id: info}, len(content))
    before = clients.traffic
    clients.cache_files(str(store), {dataset_id: info}, len(content))
    assert file.read() == content
    assert file.read(size=10) == content[:10]
    assert file.size() == len(content)
    with file.as_local() as local:
        assert Path(local.ospath).read_bytes() == content
    assert (clients.traffic - before).n_requests == 0
    # What is written over is not held any more, and another dataset is not the same.
    file.write(b"new")
    assert file.read() == b"new"
    file.write(content)
    clients.cache_files(str(store), {dataset_id: info}, len(content))
    before = clients.traffic
    clients.cache_files(str(store), {uuid.uuid4(): info}, len(content))
    assert (clients.traffic - before).requests == {"GET": 1}


def test_cache_evicts_least_recently_used_files() -> None:
    held, ids = FileCache(10), [uuid.uuid4() for _ in range(4)]
    for n, dataset_id in enumerate(ids[:3]):
        held.keep(dataset_id, f"http://store/{n}", b"abc")
    held.want(ids[:1])
    held.keep(ids[3], "http://store/3", b"abcd")
    assert [dataset_id in held for dataset_id in ids] == [True, False, True, True]
    assert held.get("http://store/1") is None
    assert held.get("http://store/3") == b"abcd"


def test_size_is_cached_only_for_the_file_just_written(s3_bucket: str) -> None:
    store = ResourcePath(f"s3://{s3_bucket}/folder/")
    clients = S3Clients()
    clients.open([str(store)])
    before = clients.traffic
    first, second = store.join("a"), store.join("b")
    first.write(b"four")
    assert first.size() == 4
    assert (clients.traffic - before).requests == {"PUT": 1}
    assert first.exists()
    first.remove()
    assert not first.exists()
    first.write(b"five5")
    second.write(b"")
    assert (first.size(), second.size()) == (5, 0)
    assert (clients.traffic - before).requests == {"PUT": 3, "HEAD": 4, "DELETE": 1}
    second.write(b"")
    assert second.size() == 0
    assert (clients.traffic - before).requests == {"PUT": 4, "HEAD": 4, "DELETE": 1}


def test_only_large_objects_need_a_head_request(s3_bucket: str) -> None:
    store = ResourcePath(f"s3://{s3_bucket}/folder/")
    clients = S3Clients()
    clients.open([str(store)])
    asked: list[bool] = []

    def note(request: AWSPreparedRequest, **_: Any) -> None:
        asked.append("Expect" in request.headers)

    assert isinstance(store, S3ResourcePath)
    client = store.client
    client.meta.events.register("before-send.s3", note)
    try:
        for size in (0, 2**20 - 1, 2**20):
            store.join(f"{size}").write(bytes(size))
            assert store.join(f"{size}").read() == bytes(size)
    finally:
        client.meta.events.unregister("before-send.s3", note)
    assert asked == [False, False, False, False, True, False]


def test_size_of_multipart_upload_is_known(s3_bucket: str, tmp_path: Path) -> None:
    store = ResourcePath(f"s3://{s3_bucket}/folder/")
    clients = S3Clients()
    clients.open([str(store)])
    file = tmp_path / "large"
    file.write_bytes(os.urandom(9 * 2**20))
    before = clients.traffic
    store.join("large").transfer_from(ResourcePath(str(file)), "copy", overwrite=True)
    assert store.join("large").size() == 9 * 2**20
    traffic = clients.traffic - before
    assert "HEAD" not in traffic.requests
    assert traffic.sent >= 9 * 2**20


def test_new_credentials_make_new_clients(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    store = ResourcePath(f"s3://{s3_bucket}/")
    clients = S3Clients()
    clients.open([str(store)])
    first = store.client  # type: ignore[attr-defined]
    clients.open([str(store)])
    assert store.client is first  # type: ignore[attr-defined]
    file.write_text("[default]\nregion = elsewhere\n")
    clients.open([str(store)])
    second = store.client  # type: ignore[attr-defined]
    assert second is not first
    clients.forget()
    clients.open([str(store)])
    assert store.client is not second  # type: ignore[attr-defined]


def test_client_made_by_another_thread_is_counted(s3_bucket: str) -> None:
    file, clients = ResourcePath(f"s3://{s3_bucket}/file"), S3Clients()
    for _ in range(5):
        clients.forget()
        other = threading.Thread(target=lambda: file.client)  # type: ignore[attr-defined]
        other.start()
        clients.open([str(file)])
        other.join()
        before = clients.traffic
        file.exists()
        assert (clients.traffic - before).requests == {"HEAD": 1}


@pytest.mark.parametrize("event", ["before-parameter-build", "before-call", "before-send"])
def test_request_that_began_before_the_client_was_known_succeeds(s3_bucket: str, event: str) -> None:
    file, clients = ResourcePath(f"s3://{s3_bucket}/file"), S3Clients()
    client = file.client  # type: ignore[attr-defined]

    def listen(**_: object) -> None:
        client.meta.events.unregister(f"{event}.s3", listen)
        clients._listen_to(client)

    client.meta.events.register_first(f"{event}.s3", listen)
    try:
        file.write(b"data")
        assert file.read() == b"data"
    finally:
        clients.forget()


def test_failure_to_make_client_fails_only_its_quantum(s3_bucket: str) -> None:
    store = f"s3://no-such-profile@{s3_bucket}/"
    clients = S3Clients()
    clients.open([store])
    with pytest.raises(ProfileNotFound):
        _ = ResourcePath(store).client  # type: ignore[attr-defined]
