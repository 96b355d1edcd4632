"""Environment of a worker: no registry, no secret."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from spark_butler.driver.backend import Backend, ReportOutcome
from spark_butler.driver.context import worker_config
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import RunOptions
from spark_butler.model.work import UnitWork, WorkerContext
from tests.support import engine_tasks
from tests.support.engine_harness import Case, Repo, WrappedBackend, make_graph, run_reference, snapshot
from tests.support.engine_tasks import CallConfig, ImportTask, SpyTask
from tests.support.mock_night import insert_dimensions
from tests.support.threaded_task import ThreadedTask

_CCD = ("visit", "detector")

MakeRepo = Callable[[str], Repo]


def _spied(folder: Path) -> Case:
    """A pipeline whose second task writes down what its process can see."""

    def build(helper: DirectButlerRepo) -> None:
        helper.add_task("a", dimensions=_CCD)
        helper.add_task("b", task_class=SpyTask, config=CallConfig(folder=str(folder)), dimensions=_CCD)
        helper.add_task("c", dimensions=_CCD)

    return Case(build)


class _HidingBackend(WrappedBackend):
    """Takes the registry away while groups run; what still needs it fails."""

    def __init__(self, inner: Backend, registry: Path):
        super().__init__(inner)
        self._registry = registry

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        hidden = self._registry.with_suffix(".hidden")
        # What takes its place is no database: to open and read it is an error, too.
        self._registry.rename(hidden)
        self._registry.write_bytes(b"not a database" * 1000)
        try:
            super().run(context, batch, report)
        finally:
            hidden.replace(self._registry)


def _watch_workers(spark: Any) -> None:
    """Make the Spark workers write down whatever they open from now on."""
    count = 2 * spark.sparkContext.defaultParallelism

    def watch(numbers: Any) -> list[int]:
        import sys
        import time

        from tests.support.engine_tasks import watch_opens

        if not hasattr(sys, "_spark_butler_opened"):
            watch_opens()
        time.sleep(0.3)
        return [os.getpid()]

    spark.sparkContext.parallelize(range(count), count).mapPartitions(watch).collect()


def test_workers_run_while_the_registry_is_gone(
    spark: Any, spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    case = _spied(folder)
    _watch_workers(spark)
    with make_repo("repo").open() as helper:
        registry = tmp_path / "repo" / "gen3.sqlite3"
        assert registry.is_file()
        graph = make_graph(helper, case)
        backend = _HidingBackend(spark_backend, registry)
        # One batch: every group runs while the driver waits and has no need of the registry.
        result = execute_graph(graph, helper.butler, backend, RunOptions(processes=len(graph)))
        assert not result.failed
        contents = snapshot(helper.butler, graph)
    notes = [json.loads(path.read_text()) for path in folder.iterdir()]
    assert len(notes) == 4
    for note in notes:
        assert note["pid"] != os.getpid()
        assert note["butlers"] == ["GroupButler", "QuantumBackedButler"]
        assert not note["has_registry"]
        assert note["watched"]
        assert any(str(tmp_path / "repo") in each for each in note["opened"]), "the watch sees nothing"
        assert not [each for each in note["opened"] if each.startswith("sqlite3.connect")]
        assert not any("gen3.sqlite3" in each for each in (*note["opened"], *note["files"]))
    with make_repo("reference").open() as helper:
        expected = run_reference(helper, case)
    assert contents.keys() == expected.datasets.keys()


def test_task_whose_module_starts_threads_runs_in_every_child(
    spark_backend: Backend, make_repo: MakeRepo
) -> None:
    with make_repo("repo").open() as helper:
        case = Case(lambda helper: helper.add_task("a", task_class=ThreadedTask, dimensions=_CCD))
        graph = make_graph(helper, case)
        result = execute_graph(
            graph, helper.butler, spark_backend, RunOptions(group_by="quantum", timeout=60)
        )
    assert len(result.outcomes) == 4
    assert not result.failed


def _open_butler_and_spy(root: str, folder: str) -> None:
    engine_tasks.watch_opens()
    with Butler.from_config(root) as butler:
        butler.collections.query("*")
        config = CallConfig(folder=folder)
        task = SpyTask(config=config, initInputs={}, name="spy")

        class Context:
            _QuantumContext__butler = butler

        task.act(Context(), None, None)  # type: ignore[arg-type]


def test_watch_would_see_a_registry(template: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_open_butler_and_spy, args=(str(template), str(tmp_path))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    (note,) = (json.loads(path.read_text()) for path in tmp_path.iterdir())
    assert note["has_registry"]
    assert any("gen3.sqlite3" in each for each in note["opened"])
    assert any("gen3.sqlite3" in each for each in note["files"])


class _RecordingBackend(SerialBackend):
    """Keeps the pickled form of all that goes to workers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: Any) -> None:
        self.sent += [cloudpickle.dumps(context), pickle.dumps(batch)]
        super().run(context, batch, report)


def _strings(data: bytes) -> set[str]:
    """Every string in a pickle and in the pickles inside it."""
    found: set[str] = set()
    try:
        for _, value, _ in pickletools.genops(data):
            if isinstance(value, str):
                found.add(value)
            elif isinstance(value, bytes | bytearray):
                found.add(value.decode("latin-1"))
                found |= _strings(bytes(value))
    except ValueError:
        # These bytes are no pickle; as text they are there already.
        pass
    return found


def test_nothing_secret_is_sent_to_workers(
    s3_repo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        name: os.environ[name]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        if os.environ.get(name)
    }
    assert "AWS_SECRET_ACCESS_KEY" in secrets, "the server of the tests has keys in the environment"
    monkeypatch.setenv("PGPASSWORD", "hush-hush")
    secrets["PGPASSWORD"] = "hush-hush"
    root = s3_repo("repo")
    backend = _RecordingBackend()
    with Butler.from_config(str(root), writeable=True) as butler:
        insert_dimensions(butler)
        helper = DirectButlerRepo(butler)

        def build(helper: DirectButlerRepo) -> None:
            helper.add_task("a", dimensions=_CCD)
            helper.add_task("b", dimensions=_CCD)

        graph = make_graph(helper, Case(build))
        # As a repository whose registry is a PostgreSQL with the password in its address would have it.
        butler._config["registry", "db"] = "postgresql://astronomer:open-sesame@db.example.org/lsst"
        butler._config["db"] = "postgresql://astronomer:open-sesame@db.example.org/lsst"
        assert not execute_graph(graph, butler, backend, RunOptions()).failed
    assert len(backend.sent) >= 2
    strings = set().union(*map(_strings, backend.sent))
    everything = "\n".join(strings)
    assert "dataset_auto1" in everything, "the search sees nothing"
    assert str(root) in everything or "s3://" in everything
    for name, secret in secrets.items():
        assert secret not in everything, name
    assert "open-sesame" not in everything
    assert "gen3.sqlite3" not in everything


def test_configuration_of_workers_has_no_registry(template: Path) -> None:
    with Butler.from_config(str(template)) as butler:
        butler._config["registry", "db"] = "postgresql://astronomer:open-sesame@db.example.org/lsst"
        config = worker_config(butler)
        assert "datastore" in config
        assert "registry" not in config
        assert "open-sesame" not in str(config)
        assert "open-sesame" in str(butler._config["registry", "db"])


def test_import_of_a_child_is_inherited_by_the_next(
    spark_backend: Backend, make_repo: MakeRepo, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    with make_repo("repo").open() as helper:
        helper.add_task("a", task_class=ImportTask, config=CallConfig(folder=str(folder)), dimensions=_CCD)
        helper.add_task("b", task_class=ImportTask, config=CallConfig(folder=str(folder)), dimensions=_CCD)
        graph = make_graph(helper, Case(lambda each: None))
        options = RunOptions(isolation="quantum", group_by="quantum")
        assert not execute_graph(graph, helper.butler, spark_backend, options).failed
    had_to: dict[str, int] = {}
    notes = [path.read_text().split() for path in folder.iterdir()]
    assert len(notes) == 8
    for worker, was_there in notes:
        had_to[worker] = had_to.get(worker, 0) + (was_there == "False")
    assert set(had_to.values()) <= {0, 1}, had_to
