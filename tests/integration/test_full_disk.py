"""Messages of a run on a cluster about a full disk of Spark."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from lsst.daf.butler import Butler

from spark_butler.demo.s3server import wait_until
from tests.integration.chaos.chaos_stage import Disk
from tests.support.clusters import Cluster
from tests.support.mock_night import fill_mock_night, task_text

_DETECTORS = 4


@pytest.mark.slow
def test_full_disk_of_spark_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, pipeline, notes = tmp_path / "repo", tmp_path / "pipeline.yaml", tmp_path / "notes"
    notes.mkdir()
    each = ["visit", "detector"]
    first = task_text(
        "first",
        "tests.support.engine_tasks.OverlapTask",
        each,
        f'config.inputs["in"] = C(dataset_type_name="mock_raw", dimensions={each})',
        f'config.outputs["out"] = C(dataset_type_name="mock_first", dimensions={each})',
        f'config.folder = "{notes}"',
        "config.number = 5",
    )
    gather = task_text(
        "gather",
        "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask",
        ["visit"],
        f'config.inputs["in"] = C(dataset_type_name="mock_first", dimensions={each}, multiple=True)',
        'config.outputs["out"] = C(dataset_type_name="mock_gather", dimensions=["visit"])',
    )
    pipeline.write_text(f"description: A gather.\ntasks:{first}{gather}")
    Butler.makeRepo(repo)
    fill_mock_night(repo, pipeline, visits=1, detectors=_DETECTORS, inputs=["mock_raw"])
    command = [str(Path(sys.executable).with_name("spark-butler")), "run", "-b", str(repo), "-i", "inputs"]
    command += ["-p", str(pipeline), "--output-run", "u/run", "--register-dataset-types"]
    command += ["--temporary", "mock_first", "--group-by", "detector", "--format", "json"]
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(Disk.make(tmp_path / f"disk{n}")) for n in range(2)]
        if not all(disk.is_small for disk in disks):
            pytest.skip("no file system can be mounted here")
        (tmp_path / "cluster").mkdir()
        cluster = stack.enter_context(
            Cluster.start(tmp_path / "cluster", memory="1g", local_dirs=[disk.path for disk in disks])
        )
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "spark-defaults.conf").write_text(
            f"spark.master {cluster.address}\nspark.driver.host 127.0.0.1\nspark.executor.memory 512m\n"
            "spark.driver.bindAddress 127.0.0.1\nspark.ui.enabled false\n"
        )
        environment = {
            **os.environ,
            "SPARK_CONF_DIR": str(tmp_path / "conf"),
            "PYSPARK_PYTHON": sys.executable,
        }
        log = stack.enter_context((tmp_path / "log").open("wb"))
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        stack.callback(process.kill)
        assert wait_until(lambda: any(notes.iterdir()) or process.poll() is not None, 300)
        for disk in disks:
            disk.fill()
        # What Spark removes after an error would make room for the next attempt.
        while process.poll() is None:
            _fill(disks)
            time.sleep(0.02)
        status = process.returncode
    text = (tmp_path / "log").read_text()
    assert status == 1, text
    # Spark may log more after it.
    failures = json.JSONDecoder().raw_decode(text, text.index("\n{") + 1)[0]["failures"]
    assert {failure["kind"] for failure in failures} == {"i/o"}
    for failure in failures:
        assert "a local disk of Spark is full" in failure["reason"], failure
        assert any(str(disk.path) in failure["reason"] for disk in disks), failure
        assert "SPARK_LOCAL_DIRS" in failure["reason"]


def _fill(disks: Sequence[Disk]) -> None:
    for disk in disks:
        with contextlib.suppress(OSError), (disk.path / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
