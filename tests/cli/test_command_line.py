"""All commands: examples in their help, ``--format json``, options files, logging options behind the name."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pyspark
import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.resources import ResourcePath

from spark_butler.cli.main import main
from spark_butler.errors import EngineError
from tests.support.job_harness import ROOT, JobRepo, submit

type RunJob = Callable[..., Result]

_COUNTS = {"quanta", "done_before", "done", "no_work", "failed", "blocked", "not_run", "retried"}


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    CliLog.resetLog()
    yield
    CliLog.resetLog()


def _call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spark-butler")


def _json(result: Result, status: int = 0) -> Any:
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def _walk(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    # Without resilient parsing, to get the command `run` launches a JVM.
    context = click.Context(command, info_name=name, parent=parent, resilient_parsing=True)
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from _walk(below, each, context)


_ALL = {context.command_path: context for context in _walk(main, "spark-butler")}
_LEAVES = [path for path, context in _ALL.items() if not isinstance(context.command, click.Group)]


def test_every_command_with_json_is_tested() -> None:
    assert {path.removeprefix("spark-butler ") for path in _LEAVES} == {
        *(
            "run",
            "plan",
            "status",
            "report",
            "cancel",
            "logs",
            "cleanup",
            "doctor",
            "submit",
            "show",
            "catalog",
            "science",
        ),
        *("run-qbb", "pre-exec-init-qbb", "demo simulate", "demo run", "demo serve"),
        *("obs register-instrument", "obs ingest-raws", "obs ingest-calibs", "obs describe"),
        *("obs define-visits", "obs fetch-refcat", "obs ingest-refcats"),
    }


@pytest.mark.parametrize("path", _ALL)
def test_help_has_an_example(path: str) -> None:
    words = path.split()[1:]
    result = _call(*words, "--help")
    assert result.exit_code == 0
    assert "\n  Example" in result.stdout
    shown = [line for line in result.stdout.splitlines() if line.startswith(f"    {path}")]
    assert shown, result.stdout


@pytest.mark.parametrize("path", _LEAVES)
def test_options_of_all_commands(path: str) -> None:
    options = [each for each in _ALL[path].command.params if isinstance(each, click.Option)]
    (form,) = [each for each in options if "--format" in each.opts]
    assert isinstance(form.type, click.Choice)
    assert (list(form.type.choices), form.default) == (["text", "json"], "text")
    names = {name for each in options for name in each.opts}
    assert names >= {"-@", "--log-level", "--long-log", "--log-file", "--log-tty", "--log-label"}


def test_plan_and_dry_run_as_json(job_repo: JobRepo, run_job: RunJob) -> None:
    given = [*job_repo.arguments, "-o", "json/plan", "--isolation", "quantum", "--temporary", "mock_f*"]
    plan = _json(_call("plan", *given, "--format", "json"))
    assert (plan["quanta"], plan["groups"], len(plan["stages"])) == (13, 13, 4)
    assert plan["grain"] == "every quantum is a group of its own"
    assert plan["stages"][0] == {"groups": 4, "kinds": [{"tasks": "first", "groups": 4}]}
    assert set(plan["temporaries"]) == {"mock_first"}
    (crossing,) = plan["crossings"]
    assert crossing["dataset_type"] == "mock_first"
    assert (crossing["from_stage"], crossing["to_stage"]) == (0, 1)
    assert (crossing["datasets"], crossing["deliveries"]) == (4, 4)
    assert plan["shuffles"] == 4


def test_run_report_status_and_cancel_as_json(job_repo: JobRepo, run_job: RunJob) -> None:
    given = [*job_repo.arguments, "--backend", "serial", "--no-versions", "-d", "detector IN (1..3)"]
    given += ["-o", "json/run", "--format", "json"]
    result = run_job(*given, "-c", "second:fail_condition=detector IN (2)")
    run = _json(result, status=1)
    assert (run["state"], run["exit_status"], run["reason"]) == ("failed", 1, "")
    assert run["run"].startswith("json/run/")
    assert set(run["totals"]) == _COUNTS
    assert [run["totals"][name] for name in ("quanta", "done", "failed", "blocked")] == [10, 5, 1, 4]
    assert [(task["label"], task["done"]) for task in run["tasks"]] == [
        *(("first", 3), ("second", 2), ("gather", 0), ("scatter", 0))
    ]
    assert run["n_ingested"] > 10
    (failure,) = run["failures"]
    assert (failure["task"], failure["data_id"]) == ("second", {"instrument": "Cam1", "detector": 2})
    assert "Simulated failure" in failure["reason"]
    assert run["reports"][0].endswith("/report.html")
    again = _json(run_job(*given, "--extend-run", "--clobber-outputs", "--skip-init-writes"))
    assert (again["state"], again["exit_status"], again["failures"]) == ("succeeded", 0, [])
    assert again["run"] == run["run"]
    assert again["reports"] != run["reports"]
    report = _json(_call("report", job_repo.root, "json/run", "--format", "json"))
    assert report["totals"]["done"] == again["totals"]["done"]
    status = _json(_call("status", job_repo.root, "json/run", "--format", "json"))
    assert status["state"] == "succeeded"
    assert run["run"] in {each["run"] for each in _json(_call("status", job_repo.root, "--format", "json"))}
    over = _call("cancel", job_repo.root, "json/run", "--format", "json")
    assert (over.exit_code, over.stdout) == (2, "")


def test_only_json_is_on_stdout_of_a_process(job_repo: JobRepo) -> None:
    command = [sys.executable, "-m", "spark_butler.cli", "run", *job_repo.arguments, "--no-versions"]
    command += ["--backend", "serial", "-o", "json/process", "--select-tasks", "first", "--format", "json"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["totals"]["done"] == 4
    assert "Plan: 4 quanta" in process.stderr


@pytest.mark.jvm
@pytest.mark.slow
def test_spark_submit_has_only_json_on_stdout_if_logs_go_to_a_file(job_repo: JobRepo, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    process = submit(
        *(*job_repo.arguments, "--no-versions", "-o", "json/submitted", "--select-tasks", "first"),
        *("--format", "json", "--no-log-tty", "--log-file", log),
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["totals"]["done"] == 4, process.stdout
    assert "Plan: 4 quanta" in log.read_text()


def test_cancel_as_json(job_repo: JobRepo) -> None:
    root = f"s3://{job_repo.bucket}/repo/spark-butler-reports/json/asked/20260101T000000000Z/status.json"
    updated = "2026-01-01T00:00:00+00:00"
    status = {"run": "json/asked", "state": "running", "updated": updated, "every": 1e12, "tasks": []}
    ResourcePath(root).write(json.dumps(status).encode())
    asked = _json(_call("cancel", job_repo.root, "json/asked", "--format", "json"))
    assert asked == {"run": "json/asked", "state": "running", "asked": True}


def test_run_that_was_not_started_or_just_started(job_repo: JobRepo, run_job: RunJob) -> None:
    given = [*job_repo.arguments, "--backend", "serial", "--no-versions", "--format", "json"]
    for bad, word in (
        (["-d", "detector = 77"], "graph"),
        (["--show", "pipeline"], "--show"),
        (["--group-by", "nonsense"], "Can't group by"),
    ):
        refused = run_job(*given, "-o", "json/refused", *bad)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.splitlines()[-1].startswith("Error: ")
        assert word in refused.stderr.splitlines()[-1]
    begun = _json(run_job(*given, "--output-run", "json/begun", "--init-only"))
    assert begun == {"run": "json/begun", "state": "initialized", "exit_status": 0}


def test_engine_error_as_json(
    job_repo: JobRepo, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*arguments: object) -> None:
        raise EngineError("The provenance can't be written.")

    given = [*job_repo.arguments, "--backend", "serial", "--no-versions", "--format", "json"]
    monkeypatch.setattr("spark_butler.run.ProvenanceRecorder.finish", break_down)
    target = ("--provenance-graph", tmp_path / "provenance.qg")
    result = run_job(*given, *target, "-o", "json/unwritten", "--select-tasks", "first")
    run = _json(result, status=1)
    assert (run["state"], run["exit_status"]) == ("succeeded", 1)
    assert result.stderr.splitlines()[-1] == "Error: The engine failed: The provenance can't be written."
    monkeypatch.setattr("spark_butler.run.execute_graph", _raise)
    run = _json(run_job(*given, "--output-run", "json/broken", "--select-tasks", "first"), status=1)
    assert (run["run"], run["state"], run["exit_status"]) == ("json/broken", "broken", 1)


def _raise(*arguments: object, **options: object) -> None:
    raise EngineError("Nothing goes.")


def test_cleanup_and_simulate_as_json(job_repo: JobRepo, tmp_path: Path) -> None:
    left = f"s3://{job_repo.bucket}/repo/spark-butler-scratch/json/left/{uuid.uuid4()}/a.b.0"
    ResourcePath(left).write(b"x")
    given: list[str | Path] = ["cleanup", job_repo.root, "--run", "json/left", "--format", "json"]
    assert _json(_call(*given, "--dry-run")) == [left]
    assert _json(_call(*given)) == {"removed": 1}
    assert _json(_call("cleanup", job_repo.root, "--dry-run", "--format", "json")) == []
    given = ["--visits", "1", "--detectors", "1", "--size", "64", "--format", "json"]
    made = _json(_call("demo", "simulate", tmp_path / "data", *given))
    assert made["raws"] == 14
    assert all(Path(made[name]).exists() for name in ("raw_dir", "truth", "camera", "refcat"))


def test_options_file_of_plan_has_its_own_section_or_that_of_run(job_repo: JobRepo, tmp_path: Path) -> None:
    options = tmp_path / "options.yaml"
    common = f"  butler-config: {job_repo.root}\n  input: [defaults]\n  pipeline: {job_repo.pipeline}\n"
    options.write_text(f"run:\n{common}  output: u/r\n  group-by: detector\n")
    assert "grouped by detector" in _call("plan", "-@", options).stdout
    options.write_text(options.read_text() + f"plan:\n{common}  output: u/p\n  group-by: instrument\n")
    assert "grouped by instrument" in _call("plan", "-@", options).stdout
    options.write_text(f"plan:\n{common}  output: u/p\n")
    assert _call("plan", "-@", options).exit_code == 0
    wrong: list[list[str | Path]] = [["run", "-@", options], ["plan", "-@", tmp_path / "nowhere.yaml"]]
    for arguments in wrong:
        result = _call(*arguments)
        assert result.exit_code == 2
        assert "Error reading overrides file" in result.stderr


def test_options_file_of_a_small_command(job_repo: JobRepo, tmp_path: Path) -> None:
    options = tmp_path / "options.yaml"
    log = tmp_path / "file.log"
    options.write_text(
        f"cleanup:\n  dry-run: true\n  format: json\n  log-file: ['{log}']\n  log-level: [DEBUG]\n"
    )
    assert _json(_call("cleanup", job_repo.root, "-@", options)) == []
    assert logging.getLogger("spark_butler").level == logging.DEBUG
    assert log.exists()
    result = _call("status", job_repo.root, "-@", options)
    assert result.exit_code == 2
    assert "status" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["cleanup", "status", "report"])
def test_logging_options_behind_a_small_command(job_repo: JobRepo, tmp_path: Path, command: str) -> None:
    log = tmp_path / "behind.log"
    result = _call(
        *("--log-file", log, command, job_repo.root, "--log-level", "spark_butler=DEBUG", "--long-log")
    )
    assert result.exit_code in (0, 2), result.output
    assert "No such option" not in result.output
    assert logging.getLogger("spark_butler").level == logging.DEBUG
    assert log.exists()


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (["statsu"], "did you mean 'status'?"),
        (["obs", "define-visit"], "did you mean 'define-visits'?"),
        (["zzz"], "known are cancel, catalog, cleanup, demo, doctor, logs, obs, plan, "),
    ],
)
def test_unknown_command_is_refused_with_near_names(given: list[str], remedy: str) -> None:
    result = _call(*given)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"Error: {given[-1]!r} is not a command of spark-butler")
    assert remedy in last


def test_version_names_the_package_and_its_foundations() -> None:
    lines = _call("--version").output.splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == [
        "spark-butler",
        "PySpark",
        "lsst-pipe-base",
        "Python",
    ]
    assert lines[1] == f"PySpark {pyspark.__version__}"
    assert lines[3] == f"Python {sys.version.split()[0]}"
