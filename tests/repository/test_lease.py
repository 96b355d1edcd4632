"""Only one driver writes into a run."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.cli.run import make_run_command
from spark_butler.errors import EngineError, RepositoryError
from spark_butler.repository import lease as lease_module
from spark_butler.repository.lease import RunLease
from spark_butler.repository.output_ingest import Ingester
from tests.support.mock_night import fill_mock_night, task_text

_RUN = "u/me/run"
_FORK = multiprocessing.get_context("fork")


@pytest.fixture
def butler(registry_repo: Path) -> Iterator[Butler]:
    with Butler.from_config(registry_repo, writeable=True) as butler:
        yield butler


def _age(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let time pass for leases that are asked for from now on."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


def test_second_driver_is_refused_by_host_and_process_of_the_first(butler: Butler) -> None:
    with RunLease(butler, _RUN):
        with pytest.raises(RepositoryError, match=rf"process {os.getpid()} on .*last sign .* ago"):
            RunLease(butler, _RUN)
        with pytest.raises(RepositoryError):
            RunLease(butler, _RUN, take_over=True)
        with RunLease(butler, "u/me/other"):
            pass
    assert not butler.collections.query("*")
    with RunLease(butler, _RUN):
        pass


def test_run_is_taken_over_only_if_asked_for(butler: Butler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_SETTLE_SECONDS", 0.0)
    with RunLease(butler, _RUN) as first:
        monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.05)
        _age(monkeypatch, 100)
        with pytest.raises(RepositoryError, match="--take-over"):
            RunLease(butler, _RUN)
        with RunLease(butler, _RUN, take_over=True) as second:
            second.check(butler)
            with pytest.raises(EngineError, match="taken over"):
                first.check(butler)


def test_living_driver_is_not_replaced_though_its_clock_is_wrong(
    butler: Butler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.1)
    with RunLease(butler, _RUN) as first:
        monkeypatch.setattr(lease_module, "_STALE_SECONDS", -1.0)
        with pytest.raises(RepositoryError, match="It is alive"):
            RunLease(butler, _RUN, take_over=True)
        first.check(butler)


def _acquire_and_die(repo: Path) -> None:
    with Butler.from_config(repo, writeable=True) as butler:
        RunLease(butler, _RUN)
        os._exit(0)


def test_run_of_a_process_that_has_ended_is_free(
    registry_repo: Path, butler: Butler, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = _FORK.Process(target=_acquire_and_die, args=(registry_repo,))
    process.start()
    process.join()
    assert len(butler.collections.query("*")) == 1
    monkeypatch.setattr(lease_module, "_SETTLE_SECONDS", 0.0)
    with RunLease(butler, _RUN) as lease:
        lease.check(butler)


def test_driver_without_its_lease_registers_nothing(butler: Butler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_SETTLE_SECONDS", 0.0)
    dataset_type = DatasetType("note", (), "StructuredDataDict", universe=butler.dimensions)
    butler.registry.registerDatasetType(dataset_type)
    butler.collections.register(_RUN)
    refs = [
        DatasetRef(dataset_type, DataCoordinate.make_empty(butler.dimensions), run=_RUN) for _ in range(2)
    ]
    with RunLease(butler, _RUN) as first:
        ingester = Ingester(butler, {"note": dataset_type}, check=first.check)
        monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.05)
        _age(monkeypatch, 100)
        with RunLease(butler, _RUN, take_over=True):
            ingester.add(refs, [refs[0].id], {})
            with pytest.raises(EngineError, match="stops and registers nothing more"):
                ingester.flush()
    assert not butler.query_all_datasets(_RUN)


_PIPELINE = "description: Two tasks.\ntasks:" + "".join(
    task_text(
        label,
        "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask",
        ("visit", "detector"),
        f'config.inputs["in"] = C(dataset_type_name="{source}", dimensions=["visit", "detector"])',
        f'config.outputs["out"] = C(dataset_type_name="{target}", dimensions=["visit", "detector"])',
    )
    for label, source, target in (("one", "mock_raw", "mock_one"), ("two", "mock_one", "mock_two"))
)


def _drive(arguments: list[str], start: float, statuses: Any) -> None:
    """Run the command at a time of its own, as another process would."""
    time.sleep(max(0.0, start - time.monotonic()))
    CliLog.resetLog()
    result = CliRunner().invoke(make_run_command("run"), arguments)
    statuses.put((result.exit_code, result.output[-2000:]))


@pytest.mark.slow
def test_of_two_drivers_one_ends_whole_and_the_other_is_refused(registry_repo: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(_PIPELINE)
    fill_mock_night(registry_repo, pipeline, visits=3, detectors=2, inputs=["mock_raw"])
    generator = random.Random(17)
    refused = 0
    for n in range(20):
        run = f"u/both/{n}"
        arguments = ["-b", str(registry_repo), "-i", "inputs", "-p", str(pipeline), "--output-run", run]
        arguments += ["--backend", "serial", "--register-dataset-types", "-d", "instrument='Cam1'"]
        statuses = _FORK.Queue()
        start = time.monotonic() + 0.1
        offsets = 0.0, generator.uniform(0.0, 3.0)
        drivers = [_FORK.Process(target=_drive, args=(arguments, start + each, statuses)) for each in offsets]
        for driver in drivers:
            driver.start()
        found = sorted(statuses.get(timeout=120) for _ in drivers)
        for driver in drivers:
            driver.join()
        assert [status for status, _ in found] == [0, 2], found
        refused += "is being written by another driver" in found[1][1]
        with Butler.from_config(registry_repo) as butler:
            for name in ("mock_one", "mock_two", "one_log", "two_metadata"):
                refs = butler.query_datasets(name, collections=run)
                assert len(refs) == 6
                assert all(butler.stored_many(refs).values())
            assert not butler.collections.query("spark-butler/*")
    assert refused, "no two drivers met"
