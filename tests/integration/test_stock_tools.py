"""Outputs of a run in the hands of the stock tools for provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from lsst.ctrl.mpexec.cli import pipetask
from lsst.daf.butler import Butler
from lsst.daf.butler.cli import butler as butler_cli
from lsst.daf.butler.cli.cliLog import CliLog

from tests.support.job_harness import JobRepo, count_quanta, run_tool
from tests.support.zip_seek import seek_by_reading

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


def _datasets(repo: JobRepo, run: str) -> dict[Any, str]:
    """IDs and types of all datasets in a run; each is in the datastore."""
    with Butler.from_config(repo.root, writeable=False) as butler:
        refs = butler.query_all_datasets(run, find_first=False)
        # One by one, since `Butler.stored_many` is wrong about datasets that share a file.
        assert all(butler.stored(ref) for ref in refs)
        return {ref.id: ref.datasetType.name for ref in refs}


@pytest.mark.parametrize(
    ("fails", "temporary"),
    [
        pytest.param(False, False, id="success-stored"),
        pytest.param(True, True, id="failure-temporary", marks=pytest.mark.slow),
        pytest.param(False, True, id="success-temporary", marks=pytest.mark.slow),
        pytest.param(True, False, id="failure-stored", marks=pytest.mark.slow),
    ],
)
def test_stock_tools_read_outputs_of_a_run(
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
        report = run_tool(pipetask.cli, "--log-level", "ERROR", "report", *more, job_repo.root, graph)
        assert ("Simulated failure" in report or "FAILED" in report) == fails
    run_tool(
        butler_cli.cli,
        *("--log-level", "ERROR", "aggregate-graph", graph, job_repo.root, "--complete"),
        *("--mock-storage-classes", "--output", theirs),
    )
    assert _datasets(job_repo, run) == before, "nothing may be registered that isn't there"

    # From the graph that the run has written.
    expected = _STATUS[fails]
    assert count_quanta(ours) == count_quanta(theirs) == expected
    run_tool(butler_cli.cli, "ingest-graph", job_repo.root, ours, "--transfer", "copy")
    assert count_quanta(job_repo.root, run) == expected
    after = _datasets(job_repo, run)
    assert {key: name for key, name in after.items() if name != "run_provenance"} == before
    with seek_by_reading():
        log = job_repo.get("first_log", run, detector=1)
        assert any("Execution of task 'first'" in record.message for record in log)
        assert job_repo.get("first_metadata", run, detector=1)["quantum"]["caveats"] == 0


def test_runs_on_spark_write_their_provenance(job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
    """With temporaries that pass from group to group, to the object store."""
    run, target = "provenance/spark", f"s3://{job_repo.bucket}/provenance/spark.qg"
    (tmp_path / "failure.py").write_text(_FAILURE)
    result = run_job(
        *(*job_repo.arguments, "--output-run", run, "--temporary", "auto"),
        *("-C", f"second:{tmp_path / 'failure.py'}", "--provenance-graph", target),
    )
    assert result.exit_code == 1, result.output
    assert "1 of 13 quanta failed, 5 blocked" in result.stdout
    assert count_quanta(target) == _STATUS[True]
    assert [key for key in job_repo.keys() if key.startswith("provenance/")] == ["provenance/spark.qg"]


@pytest.mark.slow
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
    assert count_quanta(ours) == _STATUS[False]
    assert ours.read_bytes() != before


@pytest.mark.slow
def test_provenance_write_error_follows_the_summary(
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
def test_impossible_provenance_path_is_refused_first(
    name: str, job_repo: JobRepo, run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    before = job_repo.contents()
    target = tmp_path / name
    result = run_job(*job_repo.arguments, "--output-run", "provenance/none", "--provenance-graph", target)
    assert result.exit_code == 2
    assert "provenance graph" in result.output
    assert job_repo.contents() == before
