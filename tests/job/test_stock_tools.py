"""What a run leaves behind, in the hands of the stock tools for provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from job_harness import JobRepo, submit
from lsst.ctrl.mpexec.cli import pipetask
from lsst.daf.butler import Butler
from lsst.daf.butler.cli import butler as butler_cli
from lsst.daf.butler.cli.cliLog import CliLog
from zip_seek import seek_by_reading

type RunJob = Callable[..., Result]

_FAILURE = 'config.fail_condition = "detector = 2"\n'

# Of the tasks first, second, gather and scatter, by number of quanta.
_STATUS = {
    True: [("first", 0, 0, 4), ("second", 1, 0, 3), ("gather", 0, 1, 0), ("scatter", 0, 4, 0)],
    False: [("first", 0, 0, 4), ("second", 0, 0, 4), ("gather", 0, 0, 1), ("scatter", 0, 0, 4)],
}


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """The commands set up logging, each for a process of its own."""
    CliLog.resetLog()
    yield
    CliLog.resetLog()


def _tool(cli: Any, *arguments: str | Path) -> str:
    """Run a stock command, which must succeed, and return what it prints."""
    CliLog.resetLog()
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def _status(*arguments: str | Path) -> list[tuple[Any, ...]]:
    """Failed, blocked and successful quanta of each task, as ``butler provenance-report`` counts them."""
    text = _tool(butler_cli.cli, "provenance-report", *arguments, "--format", "json")
    rows = json.loads(text)["tasks"]
    for row in rows:
        assert row["TOTAL"] == row["EXPECTED"] == row["Failed"] + row["Blocked"] + row["Successful"]
    return [(row["Task"], row["Failed"], row["Blocked"], row["Successful"]) for row in rows]


def _datasets(repo: JobRepo, run: str) -> dict[Any, str]:
    """IDs and types of all datasets in a run; each is in the datastore."""
    with Butler.from_config(repo.root, writeable=False) as butler:
        refs = butler.query_all_datasets(run, find_first=False)
        # One by one, since `Butler.stored_many` is wrong about datasets that share a file.
        assert all(butler.stored(ref) for ref in refs)
        return {ref.id: ref.datasetType.name for ref in refs}


@pytest.mark.parametrize("temporary", [False, True], ids=["stored", "temporary"])
@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
def test_stock_tools_take_what_a_run_leaves_behind(
    fails: bool, temporary: bool, job_repo: JobRepo, run_job: RunJob, tmp_path: Path
) -> None:
    run = f"provenance/{fails}/{temporary}"
    graph, ours, theirs = (tmp_path / f"{name}.qg" for name in ("graph", "ours", "theirs"))
    (tmp_path / "failure.py").write_text(_FAILURE)
    result = run_job(
        *(*job_repo.arguments, "--output-run", run, "--backend", "serial"),
        *("--save-qgraph", graph, "--provenance-graph", ours),
        *(["-C", f"second:{tmp_path / 'failure.py'}"] if fails else []),
        *(["--temporary", "auto"] if temporary else []),
    )
    assert result.exit_code == int(fails), result.output
    before = _datasets(job_repo, run)
    assert ("mock_first" in before.values()) != temporary

    # From the graph that was saved, and the repository.
    for more in ((), ("--force-v2",)):
        report = _tool(pipetask.cli, "--log-level", "ERROR", "report", *more, job_repo.root, graph)
        assert ("Simulated failure" in report or "FAILED" in report) == fails
    _tool(
        butler_cli.cli,
        *("--log-level", "ERROR", "aggregate-graph", graph, job_repo.root, "--complete"),
        *("--mock-storage-classes", "--output", theirs),
    )
    assert _datasets(job_repo, run) == before, "nothing may be registered that isn't there"

    # From the graph that the run has written.
    expected = _STATUS[fails]
    assert _status(ours) == _status(theirs) == expected
    _tool(butler_cli.cli, "ingest-graph", job_repo.root, ours, "--transfer", "copy")
    assert _status(job_repo.root, run) == expected
    after = _datasets(job_repo, run)
    assert {key: name for key, name in after.items() if name != "run_provenance"} == before
    with seek_by_reading():
        log = job_repo.get("first_log", run, detector=1)
        assert any("Execution of task 'first'" in record.message for record in log)
        assert job_repo.get("first_metadata", run, detector=1)["quantum"]["caveats"] == 0


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
def test_stock_tools_take_a_bundled_run(
    fails: bool, job_repo: JobRepo, run_job: RunJob, tmp_path: Path
) -> None:
    run = f"bundled/{fails}"
    graph, ours = (tmp_path / f"{name}.qg" for name in ("graph", "ours"))
    (tmp_path / "failure.py").write_text(_FAILURE)
    result = run_job(
        *(*job_repo.arguments, "--output-run", run, "--backend", "serial", "--bundle"),
        *("--save-qgraph", graph, "--provenance-graph", ours),
        *(["-C", f"second:{tmp_path / 'failure.py'}"] if fails else []),
    )
    assert result.exit_code == int(fails), result.output
    before = _datasets(job_repo, run)
    assert ("run_provenance" in before.values()) != fails
    with seek_by_reading():
        for more in ((), ("--force-v2",)):
            report = _tool(pipetask.cli, "--log-level", "ERROR", "report", *more, job_repo.root, graph)
            assert ("Simulated failure" in report or "FAILED" in report) == fails
        assert _status(ours) == _STATUS[fails]
        if fails:
            _tool(butler_cli.cli, "ingest-graph", job_repo.root, ours, "--transfer", "copy")
        assert _status(job_repo.root, run) == _STATUS[fails]
        assert {k for k, name in _datasets(job_repo, run).items() if name != "run_provenance"} == {
            k for k, name in before.items() if name != "run_provenance"
        }
        log = job_repo.get("first_log", run, detector=1)
        assert any("Execution of task 'first'" in record.message for record in log)
        # Another run that takes over what is done.
        more = ("--output-run", f"{run}/next", "--skip-existing-in", run, "--backend", "serial")
        again = run_job(*job_repo.arguments, *more)
        what = "all of 6 quanta succeeded" if fails else "all quanta that it selects have been done"
        assert what in again.output, again.output
    _tool(butler_cli.cli, "remove-runs", job_repo.root, run, "--no-confirm", "--force")
    # The parts that `ingest-graph` has replaced are files that nobody knows.
    assert len([key for key in job_repo.keys() if f"{run}/bundle" in key]) == int(fails)


def test_runs_on_spark_write_their_provenance(job_repo: JobRepo, tmp_path: Path) -> None:
    """In a process of its own, with temporaries that pass from group to group, to the object store."""
    run, target = "provenance/spark", f"s3://{job_repo.bucket}/provenance/spark.qg"
    (tmp_path / "failure.py").write_text(_FAILURE)
    process = submit(
        *(*job_repo.arguments, "--output-run", run, "--temporary", "auto"),
        *("-C", f"second:{tmp_path / 'failure.py'}", "--provenance-graph", target),
    )
    assert process.returncode == 1, process.stdout + process.stderr
    assert "1 of 13 quanta failed, 5 blocked" in process.stdout
    assert _status(target) == _STATUS[True]
    assert [key for key in job_repo.keys() if key.startswith("provenance/")] == ["provenance/spark.qg"]


def test_resumed_run_has_whole_provenance(job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
    """With the graph of the first attempt from its file; a new one holds only what is left to be done."""
    run, graph, ours = "provenance/resumed", tmp_path / "graph.qg", tmp_path / "ours.qg"
    common = ["--backend", "serial", "--provenance-graph", ours]
    first = run_job(*job_repo.arguments, "--output-run", run, "--save-qgraph", graph, *common)
    assert first.exit_code == 0, first.output
    before = ours.read_bytes()
    again = run_job("-b", job_repo.root, "-g", graph, "--extend-run", *common)
    assert again.exit_code == 0, again.output
    assert "all of 0 quanta succeeded" in again.output
    assert _status(ours) == _STATUS[False]
    assert ours.read_bytes() != before


def test_graph_that_can_not_be_written_is_told_after_the_summary(
    job_repo: JobRepo, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(
        "lsst.pipe.base.quantum_graph.ProvenanceQuantumGraphWriter.write_packages", fail, raising=True
    )
    target = tmp_path / "ours.qg"
    result = run_job(
        *(*job_repo.arguments, "--output-run", "provenance/unwritten", "--backend", "serial"),
        *("--provenance-graph", target),
    )
    assert result.exit_code == 1
    assert "all of 13 quanta succeeded" in result.output
    assert f"its provenance graph '{target}' can't be written: OSError: no space left" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["provenance.json", "file/provenance.qg"])
def test_impossible_place_is_refused_before_anything_is_done(
    name: str, job_repo: JobRepo, run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    before = job_repo.contents()
    target = tmp_path / name
    result = run_job(*job_repo.arguments, "--output-run", "provenance/none", "--provenance-graph", target)
    assert result.exit_code == 2
    assert "provenance graph" in result.output
    assert job_repo.contents() == before
