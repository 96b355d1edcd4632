"""The command ``logs``, for quanta that have ended and for one that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler

from spark_butler.cli.main import main
from spark_butler.demo.s3server import wait_until
from spark_butler.report.folder import find_attempts, read_json
from spark_butler.repository.checks import store_roots
from tests.support.job_harness import JobRepo


def _logs(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["logs", *map(str, arguments)], prog_name="spark-butler")


def test_log_of_an_ended_quantum_is_printed(job_repo: JobRepo, run_job: Callable[..., Result]) -> None:
    run = "u/logs/ended"
    options = ["--output-run", run, "--backend", "serial", "--no-versions", "--select-tasks", "first"]
    assert run_job(*job_repo.arguments, *options).exit_code == 0
    one = _logs(job_repo.root, run, "first:detector=2")
    assert one.exit_code == 0, one.output
    assert "detector: 2" in one.output
    assert "detector: 3" not in one.output
    assert "detector: 3" in _logs(job_repo.root, run, "first").output
    none = _logs(job_repo.root, run, "second:detector=2")
    assert none.exit_code == 2
    assert "--follow" in none.output


@pytest.mark.slow
def test_log_of_a_running_quantum_is_followed(job_repo: JobRepo, tmp_path: Path) -> None:
    run = "u/logs/running"
    head, _, rest = job_repo.pipeline.read_text().partition("  second:\n")
    pipeline, config = tmp_path / "slow.yaml", tmp_path / "second.py"
    name = "class: tests.support.engine_tasks.OverlapTask"
    pipeline.write_text(f"{head}  second:\n{re.sub('class: .*', name, rest, count=1)}")
    config.write_text(f"config.folder = {str(tmp_path)!r}\nconfig.number = 40\n")
    with open(config, "a") as stream:
        stream.write("config.fail_condition = 'detector = 1'\n")
    command = [sys.executable, "-m", "spark_butler.cli", "run", "-b", str(job_repo.root), "-i", "defaults"]
    command += ["-p", str(pipeline), "-C", f"second:{config}", "--output-run", run, "--backend", "serial"]
    with subprocess.Popen([*command, "--register-dataset-types", "--no-versions"], env=os.environ) as process:
        with Butler.from_config(job_repo.root, writeable=False) as butler:
            roots = store_roots(butler)

        def has_begun() -> bool:
            attempts = find_attempts(roots, run)
            return bool(attempts) and bool((read_json(attempts[-1].status_file) or {}).get("tasks"))

        assert wait_until(has_begun, 200)
        result = _logs(job_repo.root, run, "second:detector=1", "--follow")
        assert process.wait(300) == 0
    assert result.exit_code == 0, result.output
    assert "Log of second:instrument=Cam1,detector=1" in result.output
    assert "executing quantum for label=second" in result.output
    assert "Finished mocking task 'second'" in result.output
