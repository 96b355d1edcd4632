"""A run of the command leaves a report and a status, which other commands read; and it can be cancelled."""

from __future__ import annotations

import functools
import json
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler

from spark_butler.cli.main import main
from spark_butler.report import AttemptFolder, RunReporter, find_attempts, read_json
from spark_butler.repository.checks import store_roots
from tests.support.job_harness import JobRepo, submit

type RunJob = Callable[..., Result]

_BAD = ["-c", "second:fail_condition=detector IN (2)"]


def _call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def _attempts(repo: JobRepo, run: str) -> list[AttemptFolder]:
    with Butler.from_config(repo.root, writeable=False) as butler:
        return find_attempts(store_roots(butler), run)


def _report(repo: JobRepo, run: str) -> dict[str, Any]:
    """Return the latest report of a run."""
    content = read_json(_attempts(repo, run)[-1].report_file)
    assert content is not None
    return content


def test_run_with_failures_leaves_a_report(job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
    given = [*job_repo.arguments, "--backend", "serial", "--no-versions", "-d", "detector IN (1..3)", *_BAD]
    result = run_job(*given, "-o", "watched/failed")
    assert result.exit_code == 1, result.output
    content = _report(job_repo, "watched/failed")
    assert f"Run {content['run']}: 1 of 10 quanta failed, 4 blocked in " in result.stdout
    assert "FAILED second instrument Cam1, detector 2: ValueError: Simulated failure" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last == f"The report is in {_attempts(job_repo, content['run'])[-1].page_file}."
    assert [(task["label"], task["done"], task["failed"], task["blocked"]) for task in content["tasks"]] == [
        *(("first", 3, 0, 0), ("second", 2, 1, 0), ("gather", 0, 0, 1), ("scatter", 0, 0, 3))
    ]
    (failure,) = content["failures"]
    assert "Simulated failure" in failure["traceback"]
    assert content["totals"]["requests"] > 0
    assert content["time"]["slots"]["read"] > 0
    assert content["time"]["slots"]["write"] > 0
    assert content["time"]["before"]["session"] is None
    assert (content["time"]["slots"]["import"], content["time"]["slots"]["shuffle"]) == (0, 0)
    assert sum(content["time"]["driver"].values()) == pytest.approx(content["seconds"], abs=0.01)
    assert all(
        row[3] in ("done", "failed") for lane in content["timeline"]["lanes"] for row in lane["attempts"]
    )
    _check_commands(job_repo, tmp_path, content["run"])


@pytest.mark.parametrize(
    "mocked", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "mocked"]
)
def test_pasted_rerun_commands_run_exactly_the_failed_quanta(
    job_repo: JobRepo, run_job: RunJob, tmp_path: Path, mocked: bool
) -> None:
    failing = ["-c", "first:fail_condition=detector IN (3)", "-c", "second:fail_condition=detector IN (2)"]
    prefix = ""
    if mocked:
        failing = ["--mock", "--unmocked-dataset-types", "mock_raw", "--register-dataset-types"]
        failing += ["--mock-failure", "first::detector=3", "--mock-failure", "second::detector=2"]
        prefix = "_mock_"
    files = {name: tmp_path / name for name in ("graph.qg", "summary.json", "provenance.qg", "run.log")}
    # The query comes from a file, so that the command has to repeat it.
    options = tmp_path / "options.yaml"
    options.write_text("run:\n  data-query: detector IN (1..3)\n")
    run = f"pasted/{mocked}"
    result = run_job(
        *(*job_repo.arguments, "--backend", "serial", "--no-versions", *failing, "-o", run, "-@", options),
        *("-q", files["graph.qg"], f"--summary={files['summary.json']}", "--log-file", files["run.log"]),
        *("--provenance-graph", files["provenance.qg"]),
    )
    assert result.exit_code == 1, result.output
    for file in files.values():
        file.unlink()
    failures = _report(job_repo, run)["failures"]
    assert [(each["task"], each["data_id"]["detector"]) for each in failures] == [
        (f"{prefix}first", 3),
        (f"{prefix}second", 2),
    ]
    for failure in failures:
        assert failure["rerun"] in result.stdout
        again = run_job(*shlex.split(failure["rerun"])[2:])
        assert again.exit_code == 1, again.output
        content = _report(job_repo, run)
        assert [(each["task"], each["data_id"]) for each in content["failures"]] == [
            (failure["task"], failure["data_id"])
        ]
        # Detectors 1 and 2 have been done by the first task, detector 1 by the second.
        done_before = 2 if failure["task"].endswith("first") else 1
        assert (content["totals"]["quanta"], content["totals"]["done_before"]) == (1, done_before)
        assert "done before" in again.stdout
    assert not any(file.exists() for file in files.values())


@pytest.mark.jvm
@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["spark_butler.spark.daemon", "pyspark.daemon"])
def test_time_of_a_run_on_spark_is_split(job_repo: JobRepo, daemon: str) -> None:
    where = ("--master", "local[2]", "--conf", f"spark.python.daemon.module={daemon}")
    output = f"watched/{daemon.partition('.')[0]}"
    given = [*job_repo.arguments, "-o", output, "--temporary", "auto"]
    result = submit(*given, where=where)
    assert result.returncode == 0, result.stderr
    spent = _report(job_repo, output)["time"]
    assert spent["before"]["session"] == spent["driver"]["Spark session"]
    assert 0 < spent["before"]["session_share"] < 1
    # Workers had imported what they need when they were looked at before the run.
    assert 0.5 < spent["before"]["import"] < 60
    assert 0 < spent["slots"]["import"] < spent["slots"]["available"]
    assert 0 < spent["slots"]["shuffle"] < spent["slots"]["available"]
    assert sum(spent["shares"].values()) == pytest.approx(1.0, abs=0.001)
    assert "Not measured" not in _attempts(job_repo, output)[-1].page_file.read().decode()


def _check_commands(repo: JobRepo, place: Path, run: str) -> None:
    """Check that the commands find the report by the run's name, its chain's and without a name."""
    shown = _call("report", repo.root, run)
    assert shown.exit_code == 0, shown.output
    assert "FAILED second instrument Cam1, detector 2: ValueError" in shown.stdout
    assert f"Run {run}: failed after" in _call("status", repo.root, "watched/failed", "--follow").stdout
    listed = _call("status", repo.root).stdout.splitlines()
    assert listed[0].split() == ["run", "started", "(UTC)", "state", "done", "failed", "total"]
    # The newest run is the first.
    assert listed[1].split()[0] == run
    status = json.loads(_call("status", repo.root, run, "--format", "json").stdout)
    assert (status["state"], status["n_failures"]) == ("failed", 1)
    (attempt,) = _attempts(repo, run)
    (place / "copy.json").write_bytes(attempt.report_file.read())
    content = json.loads(_call("report", place / "copy.json", "--format", "json").stdout)
    assert content["run"] == run
    assert _call("report", repo.root, run, "--html", place / "own.html").exit_code == 0
    assert (place / "own.html").read_bytes() == attempt.page_file.read()
    over = _call("cancel", repo.root, run)
    assert (over.exit_code, "has ended already (failed)" in over.output) == (2, True)


def test_cancelled_run_ends_in_order(
    job_repo: JobRepo, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "spark_butler.report.reporter.RunReporter", functools.partial(RunReporter, seconds_between=0.1)
    )
    slow = tmp_path / "slow.py"
    slow.write_text("config.sleep = 0.5\n")

    def cancel() -> None:
        while not (attempts := _attempts(job_repo, "watched/cancelled")):
            time.sleep(0.1)
        # What the command does; two of click's test runners can't share the standard streams.
        attempts[-1].cancel_file.write(b"")

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    result = run_job(
        *(*job_repo.arguments, "--backend", "serial", "--no-versions", "--output-run", "watched/cancelled"),
        *("-C", f"first:{slow}", "--select-tasks", "first", "--format", "json"),
    )
    thread.join(10)
    assert result.exit_code == 143, result.output
    ended = json.loads(result.stdout)
    assert (ended["run"], ended["state"], ended["exit_status"]) == ("watched/cancelled", "stopped", 143)
    assert ended["totals"]["done"] + ended["totals"]["not_run"] == 4
    assert "Stopped by `spark-butler cancel`. Finished outputs are in run" in result.stderr
    (attempt,) = _attempts(job_repo, "watched/cancelled")
    content = _report(job_repo, attempt.run)
    assert (content["state"], content["reason"]) == ("stopped", "Stopped by `spark-butler cancel`.")
    assert content["totals"]["done"] < 4


def test_run_without_heartbeat_is_reported(job_repo: JobRepo) -> None:
    with Butler.from_config(job_repo.root, writeable=False) as butler:
        (root,) = store_roots(butler)
    folder = root.join("spark-butler-reports/u/silent/20260101T000000000Z/", forceDirectory=True)
    status = {
        "run": "u/silent",
        "state": "running",
        "started": "2026-01-01T00:00:00+00:00",
        "updated": "2026-01-01T00:10:00+00:00",
        "every": 10.0,
        "tasks": [],
        "failures": [],
    }
    folder.join("status.json").write(json.dumps(status).encode())
    shown = _call("status", job_repo.root, "u/silent")
    assert (shown.exit_code, "its driver is probably dead" in shown.stdout) == (3, True)
    asked = _call("cancel", job_repo.root, "u/silent")
    assert asked.exit_code == 0
    assert folder.join("cancel").exists()


@pytest.mark.parametrize("command", ["status", "report", "cancel"])
def test_unknown_run_is_refused_in_one_line(job_repo: JobRepo, command: str) -> None:
    result = _call(command, job_repo.root, "u/absent")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        f"Error: The repository {str(job_repo.root)!r} has no run 'u/absent'; expected a run "
    )


def test_invalid_report_file_is_refused_in_one_line(job_repo: JobRepo, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    assert _call("report", file).stderr == f"Error: There is no file {str(file)!r}.\n"
    for text in ("[1]", "{}", "{"):
        file.write_text(text)
        result = _call("report", file)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1, result.output
        assert "report" in result.stderr
