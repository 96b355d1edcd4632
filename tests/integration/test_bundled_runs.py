"""Runs whose metadata and logs an earlier release has packed into provenance graph files.

``tests/data/bundled_runs.tar.xz`` holds a repository that commit db4f2cf wrote
with its option ``--bundle``, on the serial backend, for the pipeline of
`job_harness`.  ``old/whole`` has ended.  The driver of ``old/killed``
(``--temporary mock_first``) died when three quanta were registered, each with
a graph file of its own; a fourth file and four temporaries were left behind.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lsst.ctrl.mpexec.cli import pipetask
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.cli.main import main
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import RunOptions
from tests.support.job_harness import count_quanta, run_tool
from tests.support.stock import read_graph
from tests.support.zip_seek import seek_by_reading

type RunJob = Callable[..., Result]

_ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "bundled_runs.tar.xz"
_QUANTA = {"first": 4, "second": 4, "gather": 1, "scatter": 4}
_SUCCESS = [(label, 0, 0, count) for label, count in _QUANTA.items()]


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """Unpack the repository; any Python reads its graph files."""
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    with seek_by_reading():
        yield tmp_path
    CliLog.resetLog()


def _command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def _assert_whole(old: Path, run: str, *, temporary: str = "") -> None:
    """Check that a run has all datasets of the pipeline, and that each can be read."""
    expected = Counter({"packages": 1, "mock_schema": 1})
    for label, count in _QUANTA.items():
        expected.update({f"{label}_config": 1, f"{label}_metadata": count, f"{label}_log": count})
        expected[f"mock_{label}"] = count
    del expected[temporary]
    with Butler.from_config(old / "repo") as butler:
        refs = butler.query_all_datasets(run, find_first=False)
        found = Counter(ref.datasetType.name for ref in refs)
        del found["run_provenance"]
        assert found == expected
        for ref in refs:
            content = butler.get(ref)
            if ref.datasetType.name.endswith("_log"):
                assert any("Execution of task" in record.message for record in content)
            elif ref.datasetType.name.endswith("_metadata"):
                assert content["quantum"]["caveats"] == 0


@pytest.mark.parametrize(
    "temporary", ["mock_first", pytest.param("", marks=pytest.mark.slow)], ids=["temporary", "retained"]
)
def test_resume_of_killed_bundled_run(temporary: str, old: Path, run_job: RunJob) -> None:
    ours = old / "ours.qg"
    arguments = ["-b", old / "repo", "-g", old / "killed.qg", "--extend-run", "--skip-existing"]
    more = ["--temporary", temporary] if temporary else []
    arguments += [*more, "--backend", "serial", "--no-versions", "--provenance-graph", ours]
    result = run_job(*arguments)
    assert result.exit_code == 0, result.output
    # Of the three that were done, one makes a temporary for a quantum that was not.
    # All that made one have to run again where it is to be retained.
    n_again = 1 if temporary else 2
    assert f"all of {10 + n_again} quanta succeeded" in result.output
    _assert_whole(old, "old/killed", temporary=temporary)
    assert count_quanta(ours) == _SUCCESS
    assert "FAILED" not in run_tool(
        pipetask.cli, "--log-level", "ERROR", "report", old / "repo", old / "killed.qg"
    )
    again = run_job(*arguments)
    assert "all of 0 quanta succeeded" in again.output, again.output
    assert count_quanta(ours) == _SUCCESS


@pytest.mark.slow
def test_resume_of_killed_bundled_run_with_new_graph(old: Path, run_job: RunJob) -> None:
    result = run_job(
        *("-b", old / "repo", "-i", "defaults", "-p", old / "pipeline.yaml", "--output-run", "old/killed"),
        *("--extend-run", "--skip-existing", "--backend", "serial", "--no-versions"),
    )
    assert result.exit_code == 0, result.output
    _assert_whole(old, "old/killed")


@pytest.mark.slow
def test_clobber_of_killed_bundled_run(old: Path) -> None:
    graph = read_graph(old / "killed.qg")
    with Butler.from_config(old / "repo", writeable=True) as butler:
        result = execute_graph(graph, butler, SerialBackend(), RunOptions(clobber_outputs=True))
    assert len(result.outcomes) == 13
    assert not result.failed
    _assert_whole(old, "old/killed")


def test_whole_bundled_run_is_read_by_later_runs_and_stock_tools(old: Path, run_job: RunJob) -> None:
    _assert_whole(old, "old/whole")
    assert count_quanta(old / "repo", "old/whole") == _SUCCESS
    result = run_job(
        *("-b", old / "repo", "-i", "defaults", "-p", old / "pipeline.yaml", "--output-run", "new"),
        *("--skip-existing-in", "old/whole", "--backend", "serial"),
    )
    assert result.exit_code == 0, result.output
    assert "all selected quanta have been done" in result.output


def test_reports_and_cleanup_of_bundled_runs(old: Path) -> None:
    status = _command("status", old / "repo", "--format", "json")
    assert status.exit_code == 0
    states = {each["run"]: (each["state"], each["tasks"]) for each in json.loads(status.stdout)}
    assert states["old/whole"][0] == "succeeded"
    assert {task["label"]: task["done"] for task in states["old/whole"][1]} == _QUANTA
    assert states["old/killed"][0] == "silent"
    report = _command("report", old / "repo", "old/whole", "--html", old / "page.html")
    assert report.exit_code == 0, report.output
    assert "old/whole" in (old / "page.html").read_text()
    cleanup = _command("cleanup", old / "repo", "--run", "old/killed")
    assert "4 scratch files removed." in cleanup.output
