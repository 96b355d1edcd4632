"""Output of a run under ``spark-submit``: little, and at its end all that one must know."""

from __future__ import annotations

from pathlib import Path

import pytest
from lsst.daf.butler import Butler

from tests.support.job_harness import submit
from tests.support.mock_night import CAMERA, fill_mock_night, task_text

_TASK = "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask"
_DIMENSIONS = ("visit", "detector")


def _connection(kind: str, name: str) -> str:
    return f'config.{kind}["{name}"] = C(dataset_type_name="{name}", dimensions={list(_DIMENSIONS)})'


@pytest.mark.slow
@pytest.mark.jvm
def test_run_with_failures_prints_little_and_ends_with_what_to_do(tmp_path: Path) -> None:
    pipeline, repo = tmp_path / "pipeline.yaml", tmp_path / "repo"
    fails = "config.fail_condition = 'visit = 2 AND detector IN (3, 4)'"
    tasks = (
        task_text(
            "one", _TASK, _DIMENSIONS, _connection("inputs", "start"), _connection("outputs", "middle")
        ),
        task_text(
            "two", _TASK, _DIMENSIONS, _connection("inputs", "middle"), _connection("outputs", "end"), fails
        ),
    )
    pipeline.write_text("description: 40 quanta\ntasks:" + "".join(tasks))
    Butler.makeRepo(repo)
    fill_mock_night(repo, pipeline, visits=5, detectors=4, inputs=["start"])
    process = submit(
        *("-b", repo, "-i", "inputs", "-p", pipeline, "-o", "u/noise", "-d", f"instrument='{CAMERA}'"),
        "--register-dataset-types",
    )
    assert process.returncode == 1, process.stderr
    lines = (process.stderr + process.stdout).splitlines()
    assert len(lines) < 60, "\n".join(lines)
    end = "\n".join(process.stdout.splitlines()[-15:])
    assert "2 of 40 quanta failed" in end
    for detector in (3, 4):
        assert (
            f"FAILED two instrument {CAMERA}, detector {detector}, visit 2: ValueError: Simulated failure"
            in end
        )
    assert end.count("  rerun: ") == 2
    assert "Rerun all that failed: " in end
    assert "The report is in file://" in end
