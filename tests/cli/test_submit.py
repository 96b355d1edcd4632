"""The command ``submit``: a detached run, and refusals that are printed at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spark_butler.cli.main import main
from spark_butler.detached.job import DetachedJob
from tests.support.job_harness import JobRepo


def _submit(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["submit", *map(str, arguments)], prog_name="spark-butler")


@pytest.mark.slow
def test_submitted_run_goes_on_without_the_command(job_repo: JobRepo, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    result = _submit(
        *("--format", "json", "--wait", "0", "--submit-dir", folder, "run", *job_repo.arguments),
        *("-o", "submitted", "--backend", "serial", "-d", "detector = 1", "--format", "json"),
    )
    assert result.exit_code == 0, result.output
    submitted = json.loads(result.stdout)
    assert submitted["state"] == "running"
    state = DetachedJob(folder).wait(120)
    log = Path(submitted["log"]).read_text()
    assert state.state == "succeeded", log
    assert ("mock_scatter", "Cam1", 1) in job_repo.datasets("submitted")


def test_refused_run_is_reported_by_submit(tmp_path: Path) -> None:
    result = _submit(
        *("--wait", "120", "--submit-dir", tmp_path / "job", "run", "-b", tmp_path / "nowhere"),
        *("-p", "pipeline.yaml", "-o", "x"),
    )
    assert result.exit_code == 2, result.output
    assert "There is no Butler repository at" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["obs"], "'obs' is not one of 'run', 'run-qbb'"),
        (["--spark-submit", "--master 'yarn", "run"], "can't be split into options"),
    ],
)
def test_unusable_arguments_of_submit_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _submit(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []
