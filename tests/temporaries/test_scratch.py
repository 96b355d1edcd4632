"""Temporaries that are too large for a shuffle wait in the object store, and are gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from lsst.daf.butler import Butler
from lsst.pipe.base.tests.mocks import DirectButlerRepo
from lsst.resources import ResourcePath

from spark_butler.driver import context
from spark_butler.driver.serial import SerialBackend
from spark_butler.temporaries import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from spark_butler.driver.backend import Backend
    from tests.support.scenarios import ScenarioRepo

_START = {"dataset_type_name": "start", "mock_storage_class": True}
_ARRAY = ("array", "NumpyArray")


@pytest.fixture
def s3_scenario(s3_repo: Callable[[str], Path]) -> Any:
    """An empty repository with its datasets in an object store."""
    from tests.support.scenarios import ScenarioRepo

    with Butler.from_config(s3_repo("repo"), writeable=True) as butler:
        yield ScenarioRepo(DirectButlerRepo(butler, "base.yaml"))


def _root(scenario: ScenarioRepo) -> ResourcePath:
    (root,) = scenario.butler.get_datastore_roots().values()
    assert root is not None
    return scratch.scratch_root(root)


def _two_steps(scenario: ScenarioRepo, **config: Any) -> None:
    scenario.real("make", "make_array", {"i": _START}, {"o": _ARRAY}, deferred=["i"], options={"size": 5000})
    scenario.real("read", "describe", {"i": _ARRAY}, {"o": "read_end"}, **config)
    scenario.real("again", "describe", {"i": _ARRAY, "j": "read_end"}, {"o": "again_end"})


def _watch_scratch(monkeypatch: pytest.MonkeyPatch, scenario: ScenarioRepo) -> list[int]:
    """Count the files that there are when a run removes them."""
    from spark_butler.driver import collector

    counts: list[int] = []

    def remove(folder: ResourcePath) -> int:
        counts.append(len(scratch.find_scratch(_root(scenario))))
        return scratch.remove_scratch(folder)

    monkeypatch.setattr(collector, "remove_scratch", remove)
    return counts


def test_large_temporaries_use_the_object_store(
    s3_scenario: ScenarioRepo, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _watch_scratch(monkeypatch, s3_scenario)
    s3_scenario.n_detectors = 1
    _two_steps(s3_scenario)
    reference = s3_scenario.run_reference()
    for limit, n_files in ((1000, 1), (10**9, 0)):
        monkeypatch.setattr(context, "MAX_SHUFFLE_BYTES", limit)
        found = s3_scenario.run_temporary(backend, ["array"], "quantum")
        assert found == {key: value for key, value in reference.items() if key[0] != "array"}
        assert counts.pop() == n_files
        assert not scratch.find_scratch(_root(s3_scenario))


@pytest.mark.parametrize("backend", ["serial", pytest.param("spark", marks=pytest.mark.slow)], indirect=True)
def test_files_are_removed_after_a_failure(
    s3_scenario: ScenarioRepo, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _watch_scratch(monkeypatch, s3_scenario)
    scenario = s3_scenario
    scenario.real("make", "make_array", {"i": _START}, {"o": _ARRAY}, deferred=["i"], options={"size": 5000})
    scenario.real("fail", "no such function", {"i": _ARRAY}, {"o": "fail_end"})
    monkeypatch.setattr(context, "MAX_SHUFFLE_BYTES", 1000)
    _, result = scenario.run(backend, temporary=("array",), group_by="quantum")
    assert len(result.failed) == 2
    assert counts == [2]
    assert not scratch.find_scratch(_root(scenario))


def test_failure_to_remove_scratch_does_not_fail_the_run(
    s3_scenario: ScenarioRepo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from spark_butler.driver import collector

    def refuse(folder: ResourcePath) -> int:
        raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "no more"}}, "ListObjectsV2")

    monkeypatch.setattr(collector, "remove_scratch", refuse)
    s3_scenario.n_detectors = 1
    _two_steps(s3_scenario)
    monkeypatch.setattr(context, "MAX_SHUFFLE_BYTES", 1000)
    _, result = s3_scenario.run(SerialBackend(), temporary=("array",), group_by="quantum")
    assert not result.failed
    assert result.n_ingested
    assert "ExpiredToken" in caplog.text
    assert "spark-butler cleanup" in caplog.text
    assert scratch.find_scratch(_root(s3_scenario))


def test_objects_are_written_in_parts_and_read_as_one(tmp_path: Path) -> None:
    data = os.urandom(10_000)
    pieces = [memoryview(data[:3]), memoryview(data[3:9000]), memoryview(data[9000:])]
    parts = scratch.store_scratch(tmp_path.as_uri(), uuid.uuid4(), pieces, part_bytes=4096)
    assert [length for _, length, _ in parts] == [4096, 4096, 1808]
    assert scratch.fetch_scratch(parts) == data
    Path(ResourcePath(parts[1][0]).ospath).write_bytes(b"short")
    with pytest.raises(OSError, match="has 5 bytes; 4096 were written"):
        scratch.fetch_scratch(parts)
    Path(ResourcePath(parts[1][0]).ospath).write_bytes(bytes(4096))
    with pytest.raises(OSError, match="has changed since it was written"):
        scratch.fetch_scratch(parts)


def test_empty_object_is_one_empty_part(tmp_path: Path) -> None:
    parts = scratch.store_scratch(tmp_path.as_uri(), uuid.uuid4(), [])
    assert [length for _, length, _ in parts] == [0]
    assert scratch.fetch_scratch(parts) == b""


def test_shuffle_short_of_disk_uses_the_object_store(
    scenario: ScenarioRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _watch_scratch(monkeypatch, scenario)
    _two_steps(scenario)
    asked: list[str] = []

    def little(folder: str) -> Any:
        asked.append(folder)
        return type("Usage", (), {"free": 2**20 if "full" in folder else 2**50})

    monkeypatch.setattr("shutil.disk_usage", little)
    for folders, n_files in (("/full/a,/full/b", 2), ("/full/a,/roomy", 0)):
        monkeypatch.setenv("SPARK_LOCAL_DIRS", folders)
        scenario.run_temporary(SerialBackend(), ["array"], "quantum")
        assert counts.pop() == n_files
    assert set(asked) == {"/full/a", "/full/b", "/roomy"}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_small_disk_uses_the_object_store(
    scenario: ScenarioRepo, spark_backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount: {mounted.stderr.decode()}")
    try:
        counts = _watch_scratch(monkeypatch, scenario)
        _two_steps(scenario)
        monkeypatch.setenv("SPARK_LOCAL_DIRS", str(disk))
        scenario.run_temporary(SerialBackend(), ["array"], "quantum")
        assert counts == [2]
    finally:
        subprocess.run(["umount", disk], check=True)


_DRIVER = """
import sys
from lsst.daf.butler import Butler
from lsst.pipe.base.tests.mocks import DirectButlerRepo
from tests.support.scenarios import ScenarioRepo
from spark_butler.driver import context
from spark_butler.driver.serial import SerialBackend
from tests.temporaries import test_scratch
context.MAX_SHUFFLE_BYTES = 1000
with Butler.from_config(sys.argv[1], writeable=True) as butler:
    scenario = ScenarioRepo(DirectButlerRepo(butler, "base.yaml"))
    test_scratch._two_steps(scenario, hold=sys.argv[2], record=sys.argv[3])
    scenario.run(SerialBackend(), temporary=("array",), group_by="quantum")
"""


def test_scratch_files_of_crashed_run_can_be_removed(s3_repo: Callable[[str], Path], tmp_path: Path) -> None:
    repo, hold, record = s3_repo("repo"), tmp_path / "hold", tmp_path / "record"
    hold.touch()
    command = [sys.executable, "-c", _DRIVER, *map(str, (repo, hold, record))]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as driver:
        try:
            deadline = time.monotonic() + 120
            while not record.exists() and driver.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert driver.poll() is None, driver.stderr.read().decode()  # type: ignore[union-attr]
            os.kill(driver.pid, signal.SIGKILL)
        finally:
            driver.kill()
    with Butler.from_config(repo) as butler:
        (root,) = butler.get_datastore_roots().values()
        assert root is not None
        folder = scratch.scratch_root(root)
        found = scratch.find_scratch(folder)
        # The other detector's turn would have come after it.
        assert len(found) == 1
        assert all("/run1/" in str(uri) for uri in found)
        assert scratch.remove_scratch(folder) == 1
        assert not scratch.find_scratch(folder)
        assert not scratch.remove_scratch(folder)
