"""A run in the background, as a notebook starts it, leaves what a run of the command leaves."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.resources import ResourcePath

from spark_butler import run as one_run
from spark_butler.cli.main import main
from spark_butler.driver.serial import SerialBackend
from spark_butler.errors import EngineError, OptionsError
from spark_butler.notebook.run import Run, RunStatus
from spark_butler.notebook.run_arguments import make_notebook_request
from spark_butler.report import AttemptFolder, RunReporter, find_attempts, read_json
from spark_butler.repository.checks import store_roots
from spark_butler.repository.task_history import save_times
from spark_butler.run import prepare
from tests.support.job_harness import JobRepo

_BAD = {"second:fail_condition": "detector IN (2)"}


def _start(repo: JobRepo, pipeline: Any = None, **options: Any) -> Run:
    """Start a run as `SparkButler.run` does, but in this process."""
    given = {"input": "defaults", "no_versions": True, **options}
    request = make_notebook_request(str(repo.root), pipeline or repo.pipeline, given)

    def again(changes: Mapping[str, Any]) -> Run:
        return _start(repo, pipeline, **{**options, **changes})

    return Run(prepare(request, slots=lambda: 1), SerialBackend(), again=again)


def _call(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def _attempts(repo: JobRepo, run: str) -> list[AttemptFolder]:
    with Butler.from_config(repo.root, writeable=False) as butler:
        return find_attempts(store_roots(butler), run)


def _report(run: Run) -> dict[str, Any]:
    assert run.report_uri is not None
    content: dict[str, Any] = json.loads(ResourcePath(run.report_uri.replace(".html", ".json")).read())
    return content


def test_a_run_and_its_retry_leave_reports_that_the_commands_find(job_repo: JobRepo) -> None:
    run = _start(job_repo, output="back/failed", config=_BAD, where="detector IN (1..3)").wait()
    assert run.status is RunStatus.FAILED
    assert run.report_uri is not None
    assert run.report_uri.startswith("s3://job-tests/repo/spark-butler-reports/back/failed/")
    assert repr(run).splitlines()[-1] == f"Report: {run.report_uri}"
    assert run.report_uri in run._repr_html_()
    assert f"Run {run.output_run}: failed after " in _call("status", job_repo.root, "back/failed")
    assert "FAILED second instrument Cam1, detector 2" in _call("report", job_repo.root, "back/failed")
    content = _report(run)
    assert (content["state"], content["totals"]["done"], content["totals"]["blocked"]) == ("failed", 5, 4)
    assert content["totals"]["ingested"] > 0
    assert content["time"]["driver"].keys() == {"quantum graph", "output run", "quanta", "other"}
    # It can be said as a command, so that it can be run again by one.
    assert content["command"][:3] == ["spark-butler", "run", "--butler-config"]
    assert content["failures"][0]["rerun"].endswith(
        "--extend-run --skip-existing --clobber-outputs --select-tasks second "
        "-d \"(detector IN (1..3)) AND (instrument = 'Cam1' AND detector = 2)\""
    )
    again = run.retry().wait()
    assert again.status is RunStatus.FAILED
    assert again.report_uri not in (None, run.report_uri)
    assert (_report(again)["totals"]["quanta"], len(_attempts(job_repo, "back/failed"))) == (5, 2)


def test_a_pipeline_that_is_only_in_the_notebook_has_no_command(job_repo: JobRepo) -> None:
    pipeline = Pipeline.from_uri(job_repo.pipeline)
    run = _start(job_repo, pipeline, output_run="back/memory", config=_BAD, select_tasks="<=second").wait()
    content = _report(run)
    assert (content["command"], content["resume"], content["failures"][0]["rerun"]) == ([], "", "")
    assert content["options"]["pipeline"] == "in memory, of first, second, gather, scatter"


@pytest.mark.parametrize("from_elsewhere", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_is_cancelled_by_its_handle_or_by_the_command(
    job_repo: JobRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, from_elsewhere: bool
) -> None:
    monkeypatch.setattr(
        "spark_butler.report.reporter.RunReporter", functools.partial(RunReporter, seconds_between=0.1)
    )
    slow = tmp_path / "slow.py"
    slow.write_text("config.sleep = 2.0\n")
    name = f"back/cancelled{from_elsewhere:d}"
    run = _start(job_repo, output_run=name, config_file=[f"first:{slow}"], select_tasks="first")
    assert run.report_uri is None
    while not _attempts(job_repo, name):
        time.sleep(0.05)
    if from_elsewhere:
        assert "to stop" in _call("cancel", job_repo.root, name)
        run.wait(60)
    else:
        run.cancel()
    assert run.status is RunStatus.CANCELLED
    content = _report(run)
    by = "by `spark-butler cancel`" if from_elsewhere else "from the notebook"
    assert (content["state"], content["reason"]) == ("stopped", f"Stopped {by}.")
    assert content["totals"]["done"] < 4
    status = read_json(_attempts(job_repo, name)[0].status_file)
    assert status is not None
    assert (status["state"], status["busy"], status["tasks"][0]["running"]) == ("stopped", 0, 0)
    assert repr(run).startswith(f"Run {name}: cancelled after ")


def test_background_run_with_engine_error_has_a_report(
    job_repo: JobRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("the database is gone")

    monkeypatch.setattr(one_run, "execute_graph", fail)
    run = _start(job_repo, output_run="back/broken")
    with pytest.raises(EngineError, match="the database is gone"):
        run.wait()
    assert run.status is RunStatus.BROKEN
    content = _report(run)
    assert (content["state"], content["reason"]) == ("broken", "the database is gone")
    assert "Run back/broken: broken after " in _call("status", job_repo.root, "back/broken")
    assert "the database is gone" in _call("report", job_repo.root, "back/broken")


def test_failure_to_write_report_does_not_fail_the_run(
    job_repo: JobRepo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(RunReporter, "_write_status", refuse)
    monkeypatch.setattr("spark_butler.report.reporter.make_page", refuse)
    run = _start(job_repo, output_run="back/refused", select_tasks="first").wait()
    assert run.status is RunStatus.SUCCEEDED
    assert run.report_uri is None
    assert "Report" not in repr(run)
    assert "No report could be made of the run: not here" in caplog.text


def test_observer_that_fails_to_start_is_reported(job_repo: JobRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: RunReporter) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(RunReporter, "__enter__", refuse)
    run = _start(job_repo, output_run="back/unwatched", select_tasks="first")
    with pytest.raises(EngineError, match="can't start new thread"):
        run.wait()


def test_times_of_earlier_runs_give_time_left_at_once(
    job_repo: JobRepo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Butler.from_config(job_repo.root, writeable=False) as butler:
        (root,) = store_roots(butler)
    labels = ("first", "second", "gather", "scatter")
    save_times(root, {(label, "SimCam,1"): 60.0 for label in labels})
    try:
        shown: list[str] = []

        def show_only(run: Run) -> None:
            with run._active.reporter:
                shown.append(repr(run))

        monkeypatch.setattr(Run, "_execute", show_only)
        with caplog.at_level(logging.INFO, logger="spark_butler.report"):
            _start(job_repo, output_run="back/learned")._thread.join()
    finally:
        root.join("spark-butler-learned/times.json").remove()
    assert "about 13 min 00 s left" in shown[0].splitlines()[0]
    assert "remain out of total 13 quanta" in caplog.text


def test_public_names_of_run_are_listed() -> None:
    assert {name for name in dir(Run) if not name.startswith("_")} == {
        *("cancel", "error", "failures", "graph", "outcomes", "output_run", "plan", "report", "report_html"),
        *("report_uri", "retry", "status", "wait", "watch"),
    }


def test_bars_have_no_meaning_in_a_notebook(job_repo: JobRepo) -> None:
    with pytest.raises(OptionsError, match="progress has no meaning in a notebook: a run shows"):
        _start(job_repo, output_run="back/bars", progress=True)
