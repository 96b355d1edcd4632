"""Inputs of the next quantum are read while this one computes, and nothing is read twice."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicConnectionConfig,
    DynamicTestPipelineTask,
    DynamicTestPipelineTaskConfig,
)
from lsst.resources import ResourcePath

from spark_butler._lsst_resources import forget_s3_clients
from spark_butler.datastore import prefetch
from spark_butler.datastore.prefetch import reads_whole_files
from spark_butler.datastore.prefetch_queue import PrefetchQueue
from spark_butler.datastore.s3_clients import S3Clients
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.driver.backend import Backend
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import RunOptions
from spark_butler.model.outcomes import NO_TRAFFIC, RunResult, Traffic, TrafficCounter
from spark_butler.worker.child_process import ChildRunner
from tests.support.engine_harness import Case, make_graph
from tests.support.engine_tasks import LazyTask, WholeTask
from tests.support.fault_proxy import FaultPlan, FaultProxy
from tests.support.mock_night import insert_dimensions

_CCD = ("visit", "detector")
_N_DETECTORS = 4

_ONE_GET = Traffic({"GET": 1}, 0, 5)


@pytest.fixture(autouse=True)
def no_quantum_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read ahead also for mock quanta."""
    monkeypatch.setattr(prefetch, "_SHORT_SECONDS", 0.0)


@pytest.fixture
def read_ahead(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the files that this process has read ahead."""
    keys: list[str] = []
    fetch = prefetch._fetch

    def note(client: Any, key: tuple[str, str]) -> bytes:
        keys.append(key[1])
        return fetch(client, key)

    monkeypatch.setattr(prefetch, "_fetch", note)
    return keys


@pytest.fixture(params=["here", "child"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Process in which the serial backend runs groups: this one, or a child."""
    if request.param == "child":
        monkeypatch.setattr("spark_butler.worker.quantum_retry.InProcessRunner", ChildRunner)
    name: str = request.param
    return name


def _graph(
    repo: Path,
    *,
    n_visits: int = 2,
    task_class: type[DynamicTestPipelineTask] = DynamicTestPipelineTask,
    **options: Any,
) -> tuple[Butler, PredictedQuantumGraph]:
    """Make a graph of chains of two quanta; both read a file of their own from the store."""

    def build(helper: DirectButlerRepo) -> None:
        config: Any = task_class.ConfigClass(**options)
        helper.add_task(
            "isr",
            task_class=task_class,
            config=config,
            dimensions=_CCD,
            inputs={"raw": _one("raw")},
            outputs={"out": _one("cleaned")},
        )
        helper.add_task(
            "calibrate",
            dimensions=_CCD,
            inputs={"in": _one("cleaned"), "stars": _one("stars")},
            config=DynamicTestPipelineTaskConfig(),
        )

    butler = Butler.from_config(repo, writeable=True)
    insert_dimensions(butler, range(1, n_visits + 1), range(1, _N_DETECTORS + 1))
    return butler, make_graph(DirectButlerRepo(butler), Case(build))


def _one(name: str) -> DynamicConnectionConfig:
    return DynamicConnectionConfig(dataset_type_name=name, dimensions=_CCD)


def _run(
    butler: Butler,
    graph: PredictedQuantumGraph,
    backend: Backend,
    server: EmbeddedS3,
    bucket: str,
    **more: Any,
) -> tuple[RunResult, Counter[str]]:
    """Run a graph, a visit in each group, and count at the server."""
    before = Counter(server.count_requests(bucket))
    result = execute_graph(graph, butler, backend, RunOptions(group_by=("visit",), temporary=("cleaned",)))
    counted = Counter(server.count_requests(bucket))
    counted.subtract(before)
    # The driver reads the notes of the run once, since there are temporaries.
    counted["GET"] -= 1
    return result, +counted


def test_prefetch_adds_no_request(
    runner: str,
    read_ahead: list[str],
    s3_server: EmbeddedS3,
    s3_bucket: str,
    s3_repo: Callable[[str], Path],
) -> None:
    butler, graph = _graph(s3_repo("repo"))
    with butler:
        result, counted = _run(butler, graph, SerialBackend(), s3_server, s3_bucket)
    assert not result.failed
    n_pairs = 2 * _N_DETECTORS
    assert counted["GET"] == 2 * n_pairs
    # Each quantum answers for its own input, even if another quantum's prefetch has read it.
    for outcome in result.outcomes.values():
        assert outcome.traffic.requests["GET"] == 1
        assert outcome.traffic.received > 0
    if runner == "here":
        # All but the first of each task in each group: only then is it known what a mock task reads.
        assert len(read_ahead) == len(set(read_ahead)) == 2 * n_pairs - 4
        for thread in threading.enumerate():
            if thread.name.startswith("spark-butler-prefetch"):
                thread.join(20)
                assert not thread.is_alive()


def test_inputs_read_by_pipe_base_are_prefetched_from_the_first_quantum(
    read_ahead: list[str], s3_server: EmbeddedS3, s3_bucket: str, s3_repo: Callable[[str], Path]
) -> None:
    butler, graph = _graph(s3_repo("repo"), task_class=WholeTask)
    with butler:
        result, counted = _run(butler, graph, SerialBackend(), s3_server, s3_bucket)
    assert not result.failed
    assert counted["GET"] == 4 * _N_DETECTORS
    names = Counter(key.split("/")[-2] for key in read_ahead)
    assert sum("raw" in key for key in read_ahead) == 2 * (_N_DETECTORS - 1), names


@pytest.mark.slow
def test_prefetch_on_spark_adds_no_request(
    spark_backend: Backend, s3_server: EmbeddedS3, s3_bucket: str, s3_repo: Callable[[str], Path]
) -> None:
    butler, graph = _graph(s3_repo("repo"), sleep=0.1)
    with butler:
        result, counted = _run(butler, graph, spark_backend, s3_server, s3_bucket)
    assert not result.failed
    assert counted["GET"] == 4 * _N_DETECTORS
    assert all(outcome.traffic.requests["GET"] == 1 for outcome in result.outcomes.values())


@pytest.mark.slow
def test_outputs_of_earlier_groups_are_prefetched(
    read_ahead: list[str], s3_server: EmbeddedS3, s3_bucket: str, s3_repo: Callable[[str], Path]
) -> None:
    def build(helper: DirectButlerRepo) -> None:
        helper.add_task("isr", dimensions=_CCD, outputs={"out": _one("cleaned")})
        helper.add_task("calibrate", dimensions=_CCD, inputs={"in": _one("cleaned")})

    butler = Butler.from_config(s3_repo("repo"), writeable=True)
    insert_dimensions(butler, (1,), range(1, 31))
    graph = make_graph(DirectButlerRepo(butler), Case(build))
    with butler:
        before = Counter(s3_server.count_requests(s3_bucket))
        result = execute_graph(graph, butler, SerialBackend(), RunOptions(group_by="quantum"))
        counted = Counter(s3_server.count_requests(s3_bucket))
    counted.subtract(before)
    assert not result.failed
    assert counted["GET"] == 60
    # Short quanta travel together.
    assert sum("cleaned" in key for key in read_ahead) > 10
    assert all(outcome.traffic.requests["GET"] == 1 for outcome in result.outcomes.values())


def test_short_quanta_are_not_prefetched(
    read_ahead: list[str],
    s3_server: EmbeddedS3,
    s3_bucket: str,
    s3_repo: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefetch, "_SHORT_SECONDS", 60.0)
    butler, graph = _graph(s3_repo("repo"), n_visits=1)
    with butler:
        result, counted = _run(butler, graph, SerialBackend(), s3_server, s3_bucket)
    assert not result.failed
    assert not read_ahead
    assert counted["GET"] == 2 * _N_DETECTORS


def test_unread_input_costs_one_request(
    read_ahead: list[str], s3_server: EmbeddedS3, s3_bucket: str, s3_repo: Callable[[str], Path]
) -> None:
    butler, graph = _graph(s3_repo("repo"), task_class=LazyTask, n_visits=1, fail_condition="detector > 1")
    with butler:
        result, counted = _run(butler, graph, SerialBackend(), s3_server, s3_bucket)
    assert not result.failed
    # The first has read its input, the second has not, and nothing is read for the third.
    assert sum("raw" in key for key in read_ahead) == 1
    assert counted["GET"] == 2 + _N_DETECTORS
    assert (
        sum(outcome.traffic.requests.get("GET", 0) for outcome in result.outcomes.values()) == counted["GET"]
    )


def test_blocked_quanta_are_not_prefetched(
    read_ahead: list[str], s3_server: EmbeddedS3, s3_bucket: str, s3_repo: Callable[[str], Path]
) -> None:
    butler, graph = _graph(s3_repo("repo"), n_visits=1, fail_condition="detector in (2, 3)")
    with butler:
        result, counted = _run(butler, graph, SerialBackend(), s3_server, s3_bucket)
    assert len(result.failed) == 2
    stars = [key for key in read_ahead if "stars" in key]
    # The first quantum of calibrate has shown what it reads; two of the other three were blocked.
    assert len(stars) <= 3
    assert counted["GET"] <= 4 + _N_DETECTORS


def test_file_is_read_by_the_queue_or_by_the_quantum() -> None:
    wasted, started, go_on = TrafficCounter(), threading.Event(), threading.Event()
    queue = PrefetchQueue(10, wasted.add)
    a, b, c, d = (("bucket", name) for name in "abcd")

    def slowly() -> tuple[bytes, Traffic]:
        started.set()
        assert go_on.wait(20)
        return b"aaaaa", _ONE_GET

    queue.add(a, 5, 3, slowly)
    queue.add(b, 5, 3, lambda: (b"bbbbb", _ONE_GET))
    assert started.wait(20)
    # There is no room for more.
    queue.add(c, 1, 3, lambda: (b"c", _ONE_GET))
    assert queue.get(c) == (None, NO_TRAFFIC)
    # A file that is only ordered is read by the quantum that needs it, and leaves room.
    assert queue.get(b) == (None, NO_TRAFFIC)
    queue.add(c, 1, 3, lambda: (None, _ONE_GET))
    queue.add(d, 4, 4, lambda: (b"dddd", _ONE_GET))
    # A file that is being read is waited for, and its traffic is counted once.
    threading.Timer(0.2, go_on.set).start()
    assert queue.get(a) == (b"aaaaa", _ONE_GET)
    assert queue.get(a) == (b"aaaaa", NO_TRAFFIC)
    assert queue.get(c) == (None, _ONE_GET)
    queue.drop(a)
    assert queue.get(a) == (None, NO_TRAFFIC)
    # A file that no quantum asks for is counted, too, as soon as it has been read.
    queue._files[d].fetched.result(20)
    assert wasted.traffic == NO_TRAFFIC
    queue.drop_for(lambda position: position == 3)
    assert wasted.traffic == NO_TRAFFIC
    queue.close()
    assert wasted.traffic == _ONE_GET
    assert queue.get(d) == (None, NO_TRAFFIC)


def test_closing_does_not_wait_for_the_store() -> None:
    wasted, started, go_on = TrafficCounter(), threading.Event(), threading.Event()
    queue = PrefetchQueue(10, wasted.add)

    def slowly() -> tuple[bytes, Traffic]:
        started.set()
        assert go_on.wait(20)
        return b"a", _ONE_GET

    queue.add(("bucket", "a"), 1, 0, slowly)
    queue.add(("bucket", "b"), 1, 0, lambda: pytest.fail("it is read after the end"))
    assert started.wait(20)
    queue.close()
    assert wasted.traffic == NO_TRAFFIC
    go_on.set()
    queue._executor.shutdown(wait=True)
    assert wasted.traffic == _ONE_GET


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_forked_process_does_not_wait_for_prefetch_thread(s3_bucket: str) -> None:
    queue, started, go_on = PrefetchQueue(10), threading.Event(), threading.Event()
    store = ResourcePath(f"s3://{s3_bucket}/folder/")
    clients = S3Clients()
    clients.open([str(store)])
    store.join("a").write(b"there")

    def never() -> tuple[bytes | None, Traffic]:
        started.set()
        go_on.wait(60)
        return None, NO_TRAFFIC

    queue.add((s3_bucket, "folder/a"), 5, 0, never)
    assert started.wait(20)
    with clients.look_ahead(queue) as is_on, clients.look_ahead(PrefetchQueue(10)) as is_on_too:
        assert (is_on, is_on_too) == (True, False)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                store.client.close()  # type: ignore[attr-defined]
                os._exit(0 if store.join("a").read() == b"there" else 1)
            os._exit(2)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.05)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    go_on.set()
    queue.close()
    assert ended != (0, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_prefetch_requests_leave_size_cache_of_other_threads_alone(s3_bucket: str) -> None:
    store = ResourcePath(f"s3://{s3_bucket}/folder/")
    clients = S3Clients()
    clients.open([str(store)])
    store.join("a").write(b"four")
    store.join("b").write(b"written")
    before = clients.traffic
    with clients.counted_apart() as counter:
        assert store.join("a").read() == b"four"
    assert counter.traffic == Traffic({"GET": 1}, 0, 4)
    assert store.join("b").size() == 7
    assert clients.traffic - before == NO_TRAFFIC


def test_overwritten_file_is_not_served_from_memory(s3_bucket: str) -> None:
    store = ResourcePath(f"s3://{s3_bucket}/folder/")
    clients = S3Clients()
    clients.open([str(store)])
    file, key = store.join("a"), (s3_bucket, "folder/a")
    for answer in (b"old", b"new"):
        queue = PrefetchQueue(10)
        queue.add(key, 3, 0, lambda: (b"old", _ONE_GET))
        queue._files[key].fetched.result(20)
        with clients.look_ahead(queue):
            if answer == b"new":
                file.write(answer)
            with file.as_local() as local:
                assert Path(local.ospath).read_bytes() == answer
            assert queue.pop_reads() == {key: 3}
        queue.close()


@pytest.mark.parametrize(
    ("formatter", "is_whole"),
    [
        ("lsst.daf.butler.formatters.json.JsonFormatter", True),
        ("lsst.daf.butler.formatters.yaml.YamlFormatter", True),
        ("lsst.daf.butler.formatters.pickle.PickleFormatter", True),
        ("lsst.daf.butler.formatters.packages.PackagesFormatter", True),
        ("lsst.daf.butler.formatters.astropyTable.AstropyTableFormatter", True),
        ("lsst.daf.butler.formatters.logs.ButlerLogRecordsFormatter", True),
        ("lsst.daf.butler.formatters.file.FileFormatter", True),
        ("lsst.images.formatters.GenericFormatter", True),
        ("spark_butler.obs.formatters.RawFitsFormatter", True),
        ("lsst.daf.butler.formatters.parquet.ParquetFormatter", False),
        ("lsst.pipe.base.quantum_graph.formatter.ProvenanceFormatter", False),
        ("no.such.Formatter", False),
        ("pathlib.Path", False),
    ],
)
def test_formatters_that_read_whole_files(formatter: str, is_whole: bool) -> None:
    assert reads_whole_files(formatter) is is_whole


def test_failed_prefetch_raises_no_error(
    s3_server: EmbeddedS3,
    s3_bucket: str,
    s3_repo: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(client: object, key: tuple[str, str]) -> bytes:
        raise OSError("with a secret")

    monkeypatch.setattr(prefetch, "_fetch", fail)
    caplog.set_level(logging.DEBUG, "spark_butler")
    butler, graph = _graph(s3_repo("repo"), n_visits=1)
    with butler:
        result, counted = _run(butler, graph, SerialBackend(), s3_server, s3_bucket)
    assert not result.failed
    assert counted["GET"] == 2 * _N_DETECTORS
    records = [record for record in caplog.records if record.name == "spark_butler.datastore.prefetch"]
    assert len(records) == 2 * (_N_DETECTORS - 1)
    assert all(record.levelno == logging.DEBUG and record.exc_info is None for record in records)
    assert "secret" not in caplog.text
    assert "OSError" in caplog.text


# It compares times of runs, which other work on the machine spoils.
@pytest.mark.slow
def test_prefetch_hides_latency_of_the_store(
    runner: str,
    s3_server: EmbeddedS3,
    s3_bucket: str,
    s3_repo: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {}
    delays = {"GET": 0.15}
    with FaultProxy(s3_server.endpoint_url, FaultPlan(delays=delays), tmp_path / "requests") as proxy:
        for name in ("ahead", "not ahead"):
            butler, graph = _graph(s3_repo(name), n_visits=1, sleep=0.2)
            monkeypatch.setenv("S3_ENDPOINT_URL", proxy.endpoint_url)
            forget_s3_clients()
            if name == "not ahead":
                monkeypatch.setattr(prefetch.Prefetcher, "_can_prefetch", lambda self: False)
            with butler:
                result, _ = _run(butler, graph, SerialBackend(), s3_server, s3_bucket)
            assert not result.failed
            assert all(outcome.traffic.requests["GET"] == 1 for outcome in result.outcomes.values())
            seconds[name] = sum(outcome.wall_seconds for outcome in result.outcomes.values())
            monkeypatch.setenv("S3_ENDPOINT_URL", s3_server.endpoint_url)
            forget_s3_clients()
    # Of each task, the first read is waited for: it is not known before what a mock task reads.
    n_hidden = 2 * (_N_DETECTORS - 1)
    assert seconds["not ahead"] - seconds["ahead"] > 0.6 * n_hidden * delays["GET"]
