"""Logging options stand where `pipetask` has them, or behind the command."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.cli.main import main
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
