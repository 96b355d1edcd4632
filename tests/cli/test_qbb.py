"""The commands without a registry against ``pipetask``'s, and what the stock tools make of their outputs."""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from lsst.ctrl.mpexec.cli import pipetask
from lsst.daf.butler import Butler
from lsst.daf.butler.cli import butler as butler_cli
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.direct_butler import DirectButler

from spark_butler.cli.main import main
from spark_butler.report.folder import new_attempt
from spark_butler.repository.checks import store_roots
from spark_butler.spark.startup import SparkStart
from tests.support.job_harness import JobRepo, count_quanta, run_tool
from tests.support.stock import read_graph

_FAILURE = 'config.fail_condition = "detector = 2"\n'


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """The commands set up logging, each for a process of its own."""
    CliLog.resetLog()
    yield
    CliLog.resetLog()


@pytest.fixture
def run_without_registry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command of the engine in this process; to connect to a registry fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a registry was opened")

    def run(*arguments: str | Path) -> Result:
        CliLog.resetLog()
        with monkeypatch.context() as patch:
            patch.setattr(DirectButler, "create_from_config", refuse)
            patch.setattr(SparkStart, "launch", lambda *_: None)
            return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spark-butler")

    return run


def _make_graph(job_repo: JobRepo, tmp_path: Path, run: str, *options: str) -> Path:
    """Build a graph with datastore records by pipetask."""
    graph = tmp_path / f"{run.replace('/', '-')}.qg"
    run_tool(
        pipetask.cli,
        *("--log-level", "ERROR", "qgraph", *job_repo.arguments, "--output-run", run),
        *("-q", str(graph)),
        "--qgraph-datastore-records",
        *options,
    )
    return graph


def _keys(job_repo: JobRepo, run: str) -> set[str]:
    """Names of a run's objects, without the name of the run."""
    prefix = f"repo/{run}/"
    found = {key.removeprefix(prefix) for key in job_repo.keys() if key.startswith(prefix)}
    return {key.replace(run.replace("/", "_"), "RUN") for key in found}


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.slow), True])
def test_run_qbb_equals_pipetask_run_qbb(
    fails: bool,
    job_repo: JobRepo,
    run_job: Callable[..., Result],
    run_without_registry: Callable[..., Result],
    tmp_path: Path,
) -> None:
    (tmp_path / "failure.py").write_text(_FAILURE)
    more = ("-C", f"second:{tmp_path / 'failure.py'}") if fails else ()
    run, other = f"qbb/{fails}/ours", f"qbb/{fails}/theirs"
    graph, other_graph = (_make_graph(job_repo, tmp_path, name, *more) for name in (run, other))
    provenance = tmp_path / "provenance.qg"

    assert run_without_registry("pre-exec-init-qbb", job_repo.root, graph).exit_code == 0
    result = run_without_registry(
        *("run-qbb", job_repo.root, graph, "--backend", "serial", "--provenance-graph", provenance),
        *("--summary", tmp_path / "ours.json"),
    )
    assert result.exit_code == int(fails), result.output
    assert "13 quanta" in result.stdout, result.output
    CliLog.resetLog()
    run_tool(pipetask.cli, "--log-level", "ERROR", "pre-exec-init-qbb", job_repo.root, other_graph)
    CliLog.resetLog()
    theirs = CliRunner().invoke(
        pipetask.cli,
        [
            *("--log-level", "ERROR", "run-qbb", str(job_repo.root), str(other_graph)),
            *("--summary", str(tmp_path / "theirs.json")),
        ],
    )
    assert (theirs.exit_code != 0) == fails

    assert _keys(job_repo, run) == _keys(job_repo, other)
    statuses = [
        sorted((each["taskLabel"], each["status"], str(each["dataId"])) for each in report["quantaReports"])
        for report in (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ours", "theirs"))
    ]
    assert statuses[0] == statuses[1]

    # The stock tools register the outputs of both, as many as a run with the registry does.
    for each in (graph, other_graph):
        run_tool(
            butler_cli.cli,
            *("--log-level", "ERROR", "aggregate-graph", each, job_repo.root, "--complete"),
            "--mock-storage-classes",
        )
    third = f"qbb/{fails}/run"
    run_job(*job_repo.arguments, "--output-run", third, "--backend", "serial", *more)
    assert job_repo.datasets(run) == job_repo.datasets(other) == job_repo.datasets(third)
    run_tool(butler_cli.cli, "ingest-graph", job_repo.root, provenance, "--transfer", "copy")
    assert count_quanta(job_repo.root, run) == count_quanta(provenance)
    counts = {"first": (0, 0, 4), "second": (1, 0, 3), "gather": (0, 1, 0), "scatter": (0, 4, 0)}
    if not fails:
        counts = {"first": (0, 0, 4), "second": (0, 0, 4), "gather": (0, 0, 1), "scatter": (0, 0, 4)}
    assert count_quanta(provenance) == [(label, *row) for label, row in counts.items()]


def test_run_qbb_resumes_from_the_files_alone(
    job_repo: JobRepo, run_without_registry: Callable[..., Result], tmp_path: Path
) -> None:
    """Temporaries of quanta that had succeeded are made again where a task needs them."""
    run, provenance = "qbb/resumed", tmp_path / "provenance.qg"
    graph = _make_graph(job_repo, tmp_path, run)
    common = ("run-qbb", job_repo.root, graph, "--backend", "serial", "--format", "json")
    run_without_registry("pre-exec-init-qbb", job_repo.root, graph)
    first = run_without_registry(*common, "--temporary", "mock_first")
    assert json.loads(first.stdout)["totals"]["done"] == 13
    # What the last tasks have left is lost.
    for key in job_repo.keys():
        if key.startswith(f"repo/{run}/") and ("gather" in key or "scatter" in key) and "config" not in key:
            job_repo.server.client().delete_object(Bucket=job_repo.bucket, Key=key)
    again = run_without_registry(*common, "--temporary", "mock_first", "--provenance-graph", provenance)
    assert json.loads(again.stdout)["totals"]["done"] == 5, again.output
    assert count_quanta(provenance) == [
        (label, 0, 0, n) for label, n in (("first", 4), ("second", 4), ("gather", 1), ("scatter", 4))
    ]
    # What was temporary is to be stored now.
    last = run_without_registry(*common)
    assert json.loads(last.stdout)["totals"]["done"] == 4, last.output
    assert len([key for key in _keys(job_repo, run) if key.startswith("mock_first/")]) == 4


def test_second_driver_of_a_run_is_refused(
    job_repo: JobRepo, run_without_registry: Callable[..., Result], tmp_path: Path
) -> None:
    """The status of the first names a process that lives."""
    run = "qbb/twice"
    graph = _make_graph(job_repo, tmp_path, run)
    with Butler.from_config(job_repo.root, writeable=False) as butler:
        folder = new_attempt(store_roots(butler)[0], run, datetime.datetime.now(datetime.UTC))
    status = {"state": "running", "every": 10.0, "driver": f"{socket.gethostname()}:{os.getpid()}"}
    now = datetime.datetime.now(datetime.UTC).isoformat()
    folder.status_file.write(json.dumps(status | {"updated": now}).encode())
    call = ("run-qbb", job_repo.root, graph, "--backend", "serial")
    run_without_registry("pre-exec-init-qbb", job_repo.root, graph)
    result = run_without_registry(*call)
    assert result.exit_code == 2, result.output
    assert "Another driver" in result.output
    assert run_without_registry(*call, "--take-over").exit_code == 0


def test_run_qbb_runs_the_chosen_quanta(
    job_repo: JobRepo, run_without_registry: Callable[..., Result], tmp_path: Path
) -> None:
    graph = _make_graph(job_repo, tmp_path, "qbb/chosen")
    quanta = read_graph(graph).quanta_by_task["first"]
    (chosen,) = (each for data_id, each in quanta.items() if data_id["detector"] == 3)
    run_without_registry("pre-exec-init-qbb", job_repo.root, graph)
    result = run_without_registry(
        *("run-qbb", job_repo.root, graph, "--backend", "serial", "--qgraph-node-id", str(chosen)),
        *("--format", "json"),
    )
    assert json.loads(result.stdout)["totals"]["done"] == 1, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["REPO", "missing.qg"], "does not exist"),
        (["REPO", "GRAPH", "--qgraph-node-id", "7"], "expected the UUID of a quantum"),
        (["nowhere", "GRAPH"], "There is no Butler repository at 'nowhere'"),
        (["REPO", "BARE"], "--qgraph-datastore-records"),
        (["REPO", "GRAPH", "--pdb", "pdb"], "--pdb works only in the process of a terminal"),
    ],
)
def test_run_qbb_refuses_bad_input(
    arguments: list[str],
    message: str,
    job_repo: JobRepo,
    run_without_registry: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, str] = {"REPO": str(job_repo.root)}
    if "GRAPH" in arguments:
        values["GRAPH"] = str(_make_graph(job_repo, tmp_path, "qbb/refused"))
    if "BARE" in arguments:
        values["BARE"] = str(tmp_path / "bare.qg")
        run_tool(
            pipetask.cli,
            *("--log-level", "ERROR", "qgraph", *job_repo.arguments, "--output-run", "qbb/bare"),
            *("-q", values["BARE"]),
        )
    before = job_repo.keys()
    result = run_without_registry("run-qbb", *(values.get(each, each) for each in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert job_repo.keys() == before
