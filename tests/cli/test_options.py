"""Options of ``pipetask run`` that have nothing to do with failures."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import networkx
import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler, DataCoordinate, MissingCollectionError
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup

from spark_butler.cli.main import main
from spark_butler.spark.startup import SparkStart
from tests.support.job_harness import JOB, JobRepo

type RunJob = Callable[..., Result]


class OrderByDetector(ExecutionGraphFixup):
    """Make each quantum of ``first`` wait for the one of the detector before."""

    def fixup_graph(
        self,
        xgraph: networkx.DiGraph[uuid.UUID],
        quanta_by_task: Mapping[str, Mapping[DataCoordinate, uuid.UUID]],
    ) -> None:
        """See `ExecutionGraphFixup.fixup_graph`."""
        quanta = quanta_by_task["first"]
        ordered = [
            quanta[data_id] for data_id in sorted(quanta, key=lambda data_id: -int(data_id["detector"]))
        ]
        xgraph.add_edges_from(itertools.pairwise(ordered))


class Cycle(OrderByDetector):
    """Make quanta wait for each other."""

    def fixup_graph(
        self,
        xgraph: networkx.DiGraph[uuid.UUID],
        quanta_by_task: Mapping[str, Mapping[DataCoordinate, uuid.UUID]],
    ) -> None:
        """See `ExecutionGraphFixup.fixup_graph`."""
        super().fixup_graph(xgraph, quanta_by_task)
        first, *_, last = quanta_by_task["first"].values()
        xgraph.add_edges_from([(first, last), (last, first)])


def _children(repo: JobRepo, chain: str) -> tuple[str, ...]:
    with Butler.from_config(repo.root, writeable=False) as butler:
        return butler.collections.get_info(chain).children


def _run(run_job: RunJob, repo: JobRepo, *arguments: str | Path, status: int = 0) -> Result:
    """Run two tasks on one detector in this process."""
    result = run_job(
        *(*repo.arguments, "-d", "instrument = 'Cam1' AND detector = 1", "--select-tasks", "<=second"),
        *("--backend", "serial", *arguments),
    )
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("more", [["--dry-run"], ["--show", "pipeline"], ["--show", "graph"]], ids=" ".join)
def test_nothing_is_written_or_started(
    job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a Spark session is made")

    monkeypatch.setattr(SparkStart, "start", refuse)
    before = job_repo.contents()
    result = run_job(*job_repo.arguments, "-o", "u/nothing", "--temporary", "mock_f*", *more)
    assert result.exit_code == 0, result.output
    assert job_repo.contents() == before
    if more == ["--dry-run"]:
        assert "13 quanta" in result.stdout
        assert "mock_first" in result.stdout
    else:
        assert "all options were processed" in result.stderr
        assert "DynamicTestPipelineTask" in result.stdout


def test_spark_butler_plan(job_repo: JobRepo) -> None:
    before = job_repo.contents()
    given = [*job_repo.arguments, "-o", "u/nothing", "--isolation", "quantum", "--temporary", "auto"]
    result = CliRunner().invoke(main, ["plan", *given])
    assert result.exit_code == 0, result.output
    assert "13 quanta in 13 groups" in result.stdout
    result = CliRunner().invoke(main, ["plan", *given, "--group-by", "nonsense"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: --isolation quantum makes each quantum a group")
    for grain, error in (("nonsense", "Can't group by nonsense"), ("quantum", "--group-by is 'quantum': ")):
        result = CliRunner().invoke(main, ["plan", *job_repo.arguments, "-o", "u/x", "--group-by", grain])
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(f"Error: {error}")
    result = CliRunner().invoke(main, ["run", "-b", str(job_repo.root), "-o", "u/nothing"])
    assert result.exit_code == 2
    assert "--pipeline" in result.stderr
    assert job_repo.contents() == before


def test_chain_is_extended_replaced_and_rebased(job_repo: JobRepo, run_job: RunJob) -> None:
    _run(run_job, job_repo, "-o", "chain")
    (first, *inputs) = _children(job_repo, "chain")
    assert inputs == ["raw/all"]
    _run(run_job, job_repo, "-o", "chain", "--output-run", "chain/named")
    assert _children(job_repo, "chain") == ("chain/named", first, "raw/all")
    _run(run_job, job_repo, "-o", "chain", "--replace-run", "--prune-replaced=purge")
    replacement, *others = _children(job_repo, "chain")
    assert others == [first, "raw/all"]
    assert replacement not in ("chain/named", first)
    assert not [key for key in job_repo.keys() if key.startswith("repo/chain/named")]
    _run(run_job, job_repo, "--output-run", "alone")
    assert job_repo.datasets("alone") >= {("mock_second", "Cam1", 1)}
    refused = _run(run_job, job_repo, "-o", "chain", "-i", "alone", status=2)
    assert "--rebase" in refused.stderr.splitlines()[-1]
    _run(run_job, job_repo, "-o", "chain", "-i", "alone", "--rebase")
    rebased, *others = _children(job_repo, "chain")
    assert others == [replacement, first, "raw/all", "alone"]
    _run(run_job, job_repo, "-o", "chain", "-i", "alone", "--replace-run")
    last, *others = _children(job_repo, "chain")
    assert others == [replacement, first, "raw/all", "alone"]
    assert last != rebased
    assert ("mock_second", "Cam1", 1) in job_repo.datasets(rebased)


def test_init_only_then_extended(job_repo: JobRepo, run_job: RunJob) -> None:
    _run(run_job, job_repo, "--output-run", "init", "--init-only")
    assert job_repo.datasets("init") == {
        (name,) for name in ("first_config", "second_config", "mock_schema", "packages")
    }
    _run(run_job, job_repo, "--output-run", "init", "--extend-run", "--no-versions")
    assert ("mock_second", "Cam1", 1) in job_repo.datasets("init")


def test_without_init_writes_and_versions(job_repo: JobRepo, run_job: RunJob) -> None:
    _run(run_job, job_repo, "--output-run", "bare", "--no-versions", "--delete", "scatter")
    assert ("packages",) not in job_repo.datasets("bare")
    result = run_job(
        *(*job_repo.arguments, "--output-run", "none", "--skip-init-writes", "--select-tasks", "first"),
        *("--backend", "serial", "-c", "first:int_value=7"),
    )
    assert result.exit_code == 0, result.output
    written = job_repo.datasets("none")
    assert {each[0] for each in written} == {"mock_first", "first_log", "first_metadata"}
    assert job_repo.get("mock_first", "none", detector=2).int_value == 7


def test_skip_existing_in(job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
    _run(run_job, job_repo, "-o", "skip")
    summary = tmp_path / "summary.json"
    result = run_job(
        *(*job_repo.arguments, "-i", "skip", "-o", "skip2", "--skip-existing-in", "skip"),
        *("--select-tasks", "<=second", "--backend", "serial", "--summary", summary),
    )
    assert result.exit_code == 0, result.output
    done = [each["dataId"]["detector"] for each in json.loads(summary.read_text())["quantaReports"]]
    assert sorted(done) == [2, 2, 3, 3, 4, 4]


def test_summary_that_cannot_be_written_is_refused_before_the_run(
    job_repo: JobRepo, run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "summary.json"
    refused = _run(run_job, job_repo, "--output-run", "summarized", "--summary", place, status=2)
    assert f"--summary {place}: the file can't be written there" in refused.stderr
    with pytest.raises(MissingCollectionError):
        job_repo.datasets("summarized")


def test_store(job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
    file = tmp_path / "stored.yaml"
    file.write_text("- nothing_like_it*\n- mock_sec*\n")
    _run(run_job, job_repo, "--output-run", "r0", "--store", file, status=2)
    file.write_text("- mock_sec*\n")
    _run(run_job, job_repo, "--output-run", "stored", "--store", file, "--store", "*_log")
    types = {each[0] for each in job_repo.datasets("stored")}
    assert "mock_first" not in types
    assert {"mock_second", "first_log", "first_metadata", "second_config"} <= types


def test_graph_fixup(job_repo: JobRepo, run_job: RunJob) -> None:
    given = [*job_repo.arguments, "--backend", "serial", "--select-tasks", "first"]
    name = f"{OrderByDetector.__module__}.OrderByDetector"
    result = run_job(*given, "-o", "fixup", "--graph-fixup", name, "--log-level", "INFO")
    assert result.exit_code == 0, result.output
    with Butler.from_config(job_repo.root, writeable=False) as butler:
        starts = {
            detector: butler.get("first_metadata", instrument="Cam1", detector=detector, collections="fixup")[
                "quantum"
            ]["startUtc"]
            for detector in (1, 2, 3, 4)
        }
    assert sorted(starts, key=lambda detector: starts[detector]) == [4, 3, 2, 1]
    for bad, word in ((f"{Cycle.__module__}.Cycle", "cycle"), ("builtins.dict", "ExecutionGraphFixup")):
        result = run_job(*given, "-o", "fixup2", "--graph-fixup", bad)
        assert result.exit_code == 2
        assert word in result.stderr.splitlines()[-1]


def test_mock_with_temporaries(job_repo: JobRepo, run_job: RunJob) -> None:
    result = run_job(
        *(*job_repo.arguments, "-o", "mocked", "--mock", "--unmocked-dataset-types", "mock_raw"),
        *("--mock-failure", "scatter::detector=3", "--register-dataset-types"),
        *("--backend", "serial", "--temporary", "_mock_mock_first"),
    )
    assert result.exit_code == 1, result.output
    assert "FAILED _mock_scatter" in result.stdout
    types = {each[0] for each in job_repo.datasets("mocked")}
    assert "_mock_mock_second" in types
    assert "_mock_mock_first" not in types


def test_options_file_profile_and_logs(job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
    options = tmp_path / "options.yaml"
    options.write_text("run:\n  output: from-options\n  no-versions: true\n")
    log, profile = tmp_path / "run.log", tmp_path / "run.prof"
    _run(
        *(run_job, job_repo, "-@", options, "--profile", profile, "--log-file", log),
        *("--long-log", "--log-level", "DEBUG", "--debug", "--enable-implicit-threading", "--fail-fast"),
    )
    assert ("packages",) not in job_repo.datasets("from-options")
    text = log.read_text()
    assert "Plan: 2 quanta" in text
    assert "spark_butler" in text
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    assert profile.stat().st_size


@pytest.mark.slow
@pytest.mark.jvm
def test_sigterm_ends_a_run_in_order(job_repo: JobRepo, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("config.sleep = 20.0\n")
    log = tmp_path / "stderr"

    def count_done() -> int:
        try:
            return [each[0] for each in job_repo.datasets("stopped")].count("first_metadata")
        except MissingCollectionError:
            return 0

    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, str(JOB), *job_repo.arguments, "-o", "stopped", "--no-versions"),
                *("-C", f"second:{slow}", "--isolation", "quantum", "--long-log"),
            ],
            env={**os.environ, "PYSPARK_SUBMIT_ARGS": "--master local[2] pyspark-shell"},
            stdout=stream,
            stderr=stream,
        )
        deadline = time.monotonic() + 240
        while count_done() < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    err = log.read_text()
    assert process.returncode == 143, err
    (line,) = [line for line in err.splitlines() if line.startswith("Stopped by SIGTERM")]
    assert line.endswith("repeat the command with --extend-run --skip-existing.")
    # The JVM and PySpark's daemon may have their say about the killed Spark tasks, this process has not.
    assert all("pyspark" in stack for stack in err.split("Traceback")[1:]), err
    assert count_done() >= 2
