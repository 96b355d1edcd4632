"""Logging options stand where `pipetask` has them, or behind the command."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.cli.command import start_logging
from spark_butler.cli.main import main
from spark_butler.worker.json_log import start_json_log
from tests.support.job_harness import JobRepo


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    CliLog.resetLog()
    yield
    CliLog.resetLog()


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spark-butler")


@pytest.mark.parametrize("before", [True, False])
def test_a_plan_is_logged_as_asked(job_repo: JobRepo, tmp_path: Path, before: bool) -> None:
    file = tmp_path / "log.json"
    options: list[str | Path] = [
        "--log-level",
        "lsst.pipe=WARNING",
        "--log-level",
        "spark_butler=DEBUG",
        "--log-file",
        file,
    ]
    rest = [*job_repo.arguments, "-o", "u/logged"]
    result = _invoke(*options, "plan", *rest) if before else _invoke("plan", *options, *rest)
    assert result.exit_code == 0, result.output
    assert logging.getLogger("spark_butler").level == logging.DEBUG
    assert logging.getLogger("lsst.pipe").level == logging.WARNING
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert any("quanta" in each["message"] for each in records)


def test_small_commands_log_as_asked(job_repo: JobRepo, tmp_path: Path) -> None:
    file = tmp_path / "cleanup.log"
    result = _invoke("--log-level", "DEBUG", "--long-log", "--log-file", file, "cleanup", job_repo.root)
    assert result.exit_code == 0, result.output
    assert logging.getLogger("spark_butler").level == logging.DEBUG
    assert "DEBUG" in file.read_text()


@pytest.mark.parametrize("command", ["cleanup", "plan"])
def test_unknown_log_level_is_refused(job_repo: JobRepo, command: str) -> None:
    result = _invoke("--log-level", "spark_butler=LOUD", command, job_repo.root)
    assert result.exit_code == 2
    assert "LOUD" in result.output
    assert "debug" in result.output.lower()


def test_json_log_names_task_and_data_id(job_repo: JobRepo, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--log-json", *job_repo.arguments, "--output-run", "u/json-log"]
    result = _invoke(*arguments, "--backend", "serial", "--no-versions", "--select-tasks", "first")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (result.stderr + capfd.readouterr().err).splitlines() if line]
    own = [each for each in records if each.get("data_id") == {"instrument": "Cam1", "detector": 2}]
    assert {each["task"] for each in own} == {"first"}
    assert all(each.keys() >= {"time", "level", "logger", "message", "host", "process"} for each in records)
    assert any("task" not in each for each in records)


def test_worker_repeats_json_log_without_a_terminal() -> None:
    start_logging(
        {
            "long_log": False,
            "log_tty": True,
            "log_file": (),
            "log_label": {},
            "log_json": True,
            "log_level": {},
        }
    )
    assert (start_json_log,) in CliLog.configState
    assert (CliLog.initLog, False, False, (), {}) in CliLog.configState
