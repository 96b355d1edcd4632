"""The job does what ``pipetask run`` does with the same graph, and stock tools work on what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from lsst.ctrl.mpexec.cli import pipetask
from lsst.daf.butler import Butler
from lsst.daf.butler.cli import butler as butler_cli
from lsst.daf.butler.cli.cliLog import CliLog

from tests.support.job_harness import JobRepo, submit

type RunJob = Callable[..., Result]

_NO_WORK = 'config.fail_condition = "detector = 3"\nconfig.fail_exception = "lsst.pipe.base.NoWorkFound"\n'
_FAILURE = 'config.fail_condition = "detector = 2"\n'
_SIGNAL = 'config.fail_condition = "detector = 4"\nconfig.fail_signal = 9\n'


def pipetask_run(*arguments: str | Path) -> Result:
    """Run ``pipetask run`` in this process."""
    CliLog.resetLog()
    result = CliRunner().invoke(pipetask.cli, ["run", *map(str, arguments)])
    CliLog.resetLog()
    return result


def tool(cli: Any, *arguments: str | Path) -> str:
    """Run another stock command, which must succeed, and return what it prints."""
    CliLog.resetLog()
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    CliLog.resetLog()
    assert result.exit_code == 0, result.output
    return result.stdout


def read_summary(path: Path) -> tuple[str, dict[str, str]]:
    """Status of the run, and of each quantum by task and data ID."""
    report = json.loads(path.read_text())
    quanta = {
        f"{each['taskLabel']} {json.dumps(each['dataId'], sort_keys=True)}": each["status"]
        for each in report["quantaReports"]
    }
    return report["status"], quanta


def fingerprint(repo: JobRepo, dataset_type: str, run: str, **data_id: Any) -> object:
    """Describe a mock dataset and its inputs, without IDs that are random."""
    dataset = repo.get(dataset_type, run, **data_id)
    inputs = {
        name: sorted((each.dataset_type.name, sorted(each.data_id.items())) for each in datasets)
        for name, datasets in dataset.quantum.inputs.items()
    }
    return dataset.dataset_type, sorted(dataset.data_id.items()), dataset.quantum.task_label, inputs


def overrides(directory: Path, **texts: str) -> list[str]:
    """Options that configure tasks."""
    options = []
    for label, text in texts.items():
        file = directory / f"{label}.py"
        file.write_text(text)
        options += ["-C", f"{label}:{file}"]
    return options


def test_spark_submit_equals_pipetask(job_repo: JobRepo, tmp_path: Path) -> None:
    given = [
        *job_repo.arguments,
        *overrides(tmp_path, first=_NO_WORK, scatter=_FAILURE),
        "--no-versions",
    ]
    stock = pipetask_run(*given, "-o", "parity/stock", "--summary", tmp_path / "stock.json")
    graph = tmp_path / "graph.qg"
    summary = ("--summary", tmp_path / "spark.json")
    process = submit(*given, "-o", "parity/spark", *summary, "--save-qgraph", graph)
    assert stock.exit_code == 1
    assert process.returncode == 1, process.stderr
    assert "FAILED scatter " in process.stdout
    assert "Traceback" not in process.stdout + process.stderr
    secret = job_repo.server.environment()["AWS_SECRET_ACCESS_KEY"]
    assert secret not in process.stdout + process.stderr
    assert read_summary(tmp_path / "spark.json") == read_summary(tmp_path / "stock.json")
    written = job_repo.datasets("parity/spark")
    assert written == job_repo.datasets("parity/stock")
    assert ("mock_scatter", "Cam1", 1) in written
    assert ("mock_scatter", "Cam1", 2) not in written
    assert ("second_metadata", "Cam1", 3) in written
    assert ("mock_second", "Cam1", 3) not in written
    for name, data_id in (("mock_second", {"detector": 1}), ("mock_gather", {})):
        assert fingerprint(job_repo, name, "parity/spark", **data_id) == fingerprint(
            job_repo, name, "parity/stock", **data_id
        )
    check_stock_tools(job_repo, graph, tmp_path)


def check_stock_tools(job_repo: JobRepo, graph: Path, tmp_path: Path) -> None:
    """Look at a run with the tools that operators have."""
    repo = job_repo.root
    table = tool(butler_cli.cli, "query-datasets", repo, "mock_scatter", "--collections", "parity/spark")
    assert len([line for line in table.splitlines() if "Cam1" in line]) == 2
    assert "CHAINED" in tool(butler_cli.cli, "query-collections", repo, "parity/*")
    place = tmp_path / "artifacts"
    place.mkdir()
    tool(
        *(butler_cli.cli, "retrieve-artifacts", repo, place, "--collections", "parity/spark"),
        *("--dataset-type", "mock_gather"),
    )
    assert [path for path in place.rglob("*") if path.suffix == ".json" and "gather" in path.name]
    report = tool(pipetask.cli, "report", repo, graph)
    rows = {line.split()[0]: line.split()[-3:] for line in report.splitlines() if line.strip()}
    # Blocked, succeeded, expected.
    assert rows["first"] == ["0", "4", "4"], report
    assert rows["scatter"] == ["0", "3", "4"], report


@pytest.mark.slow
def test_failure_before_a_gather_and_resume(
    job_repo: JobRepo, run_job: RunJob, tmp_path: Path, spark: object
) -> None:
    broken, fixed = tmp_path / "broken", tmp_path / "fixed"
    broken.mkdir()
    fixed.mkdir()
    given = [*job_repo.arguments, "--no-versions"]
    ways: dict[str, Callable[..., Result]] = {"stock": pipetask_run, "spark": run_job}
    summaries = {}
    for name, run in ways.items():
        options = [*given, *overrides(broken, second=_FAILURE), "--summary", tmp_path / f"{name}.json"]
        result = run(*options, "-o", f"gather/{name}")
        assert result.exit_code == 1, result.output
        summaries[name] = read_summary(tmp_path / f"{name}.json")
    assert summaries["spark"] == summaries["stock"]
    assert job_repo.datasets("gather/spark") == job_repo.datasets("gather/stock")
    assert ("mock_second", "Cam1", 2) not in job_repo.datasets("gather/spark")
    # The other configuration is refused first, and then the log of the failure.
    fixing = [*given, *overrides(fixed, second=""), "--extend-run"]
    for more, word in (([], "configuration of task 'second'"), (["--skip-init-writes"], "--clobber-outputs")):
        before = job_repo.contents()
        assert pipetask_run(*fixing, *more, "-o", "gather/stock").exit_code == 1
        result = run_job(*fixing, *more, "-o", "gather/spark")
        assert result.exit_code == 2
        assert word in result.stderr.splitlines()[-1]
        assert job_repo.contents() == before
    fixing += ["--clobber-outputs", "--skip-init-writes"]
    for name, run in ways.items():
        result = run(*fixing, "-o", f"gather/{name}", "--summary", tmp_path / f"{name}.json")
        assert result.exit_code == 0, result.output
        summaries[name] = read_summary(tmp_path / f"{name}.json")
    assert summaries["spark"] == summaries["stock"]
    assert job_repo.datasets("gather/spark") == job_repo.datasets("gather/stock")
    assert len(summaries["spark"][1]) == 6
    assert ("mock_scatter", "Cam1", 2) in job_repo.datasets("gather/spark")
    # Nothing is left to do, which pipetask calls an empty graph.
    assert pipetask_run(*fixing, "-o", "gather/stock").exit_code != 0
    assert run_job(*fixing, "-o", "gather/spark").exit_code == 0


def test_skipping_and_clobbering_equal_pipetask(job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
    given = [*job_repo.arguments, "--no-versions"]
    ways: dict[str, Callable[..., Result]] = {
        "stock": pipetask_run,
        "ours": lambda *arguments: run_job(*arguments, "--backend", "serial"),
    }
    steps: list[tuple[str, int, Sequence[str | Path]]] = [
        # Name of the chain, exit status, options.
        ("one", 1, overrides(tmp_path, second=_FAILURE)),
        ("two", 0, ["--skip-existing-in", "{way}/one", "-d", "detector < 3"]),
        ("one", 0, ["--extend-run", "--clobber-outputs", "--skip-init-writes", "-d", "detector < 3"]),
    ]
    for number, (chain, status, options) in enumerate(steps):
        found = {}
        for way, run in ways.items():
            summary = tmp_path / f"{way}-{number}.json"
            filled = [str(option).format(way=f"skip/{way}") for option in options]
            result = run(*given, *filled, "-o", f"skip/{way}/{chain}", "--summary", summary)
            assert result.exit_code == status, (number, way, result.output)
            found[way] = read_summary(summary), job_repo.datasets(f"skip/{way}/{chain}")
        assert found["ours"] == found["stock"], number


@pytest.mark.slow
def test_temporaries_leave_no_files_and_are_made_again(
    job_repo: JobRepo, run_job: RunJob, tmp_path: Path, spark: object
) -> None:
    broken, fixed = tmp_path / "broken", tmp_path / "fixed"
    broken.mkdir()
    fixed.mkdir()
    given = [*job_repo.arguments, "--no-versions", "-o", "temporary", "--temporary", "mock_first"]
    result = run_job(*given, *overrides(broken, second=_FAILURE))
    assert result.exit_code == 1, result.output
    types = {each[0] for each in job_repo.datasets("temporary")}
    assert "mock_first" not in types
    assert {"mock_second", "first_metadata", "first_log"} <= types
    summary = tmp_path / "summary.json"
    result = run_job(
        *(*given, *overrides(fixed, second=""), "--summary", summary),
        *("--extend-run", "--skip-init-writes", "--clobber-outputs"),
    )
    assert result.exit_code == 0, result.output
    again = [each for each in read_summary(summary)[1] if each.startswith("first ")]
    assert len(again) == 1
    assert '"detector": 2' in again[0]
    written = job_repo.datasets("temporary")
    assert not [each for each in written if each[0] == "mock_first"]
    assert {each for each in written if each[0] == "mock_scatter"} == {
        ("mock_scatter", "Cam1", detector) for detector in (1, 2, 3, 4)
    }
    assert not [key for key in job_repo.keys() if "mock_first" in key and "temporary" in key]


@pytest.mark.parametrize(
    ("file", "records"),
    [
        pytest.param("graph.qg", True, marks=pytest.mark.slow),
        pytest.param("graph.qg", False, marks=pytest.mark.slow),
        ("graph.qgraph", True),
    ],
    ids=str,
)
def test_graph_from_a_file(
    job_repo: JobRepo,
    run_job: RunJob,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    records: bool,
) -> None:
    output = f"file/{file.replace('.', '-')}-{records}"
    path = tmp_path / file
    more = ["--qgraph-datastore-records"] if records else []
    pattern = overrides(tmp_path, scatter=_FAILURE)
    CliLog.resetLog()
    made = CliRunner().invoke(
        pipetask.cli,
        ["qgraph", *job_repo.arguments, *pattern, "-o", output, "--save-qgraph", str(path), *more],
    )
    assert made.exit_code == 0, made.output
    given = ["-b", job_repo.root, "-g", path, "--backend", "serial"]
    result = run_job(*given)
    assert result.exit_code == 1, result.output
    assert f"Reading {path}, which executes the task configurations" in caplog.text
    assert ("mock_gather", "Cam1") in job_repo.datasets(output)
    with Butler.from_config(job_repo.root, writeable=False) as butler:
        run, *others = butler.collections.get_info(output).children
    assert run.startswith(f"{output}/2")
    assert others == ["raw/all"]
    assert job_repo.datasets(run)
    # It runs into its own output run, once.
    before = job_repo.contents()
    again = run_job(*given)
    assert again.exit_code == 2
    assert "--extend-run" in again.stderr.splitlines()[-1]
    other = run_job(*given, "--output-run", "file/other")
    assert other.exit_code == 2
    assert "update-graph-run" in other.stderr.splitlines()[-1]
    assert job_repo.contents() == before
    resumed = run_job(*given, "--extend-run", "--clobber-outputs")
    assert resumed.exit_code == 1
    assert "1 of 1 quantum failed" in resumed.output
    assert {key for key in job_repo.keys() if "scatter" in key} >= {
        key for key in before[2] if "mock_scatter" in key
    }


@pytest.mark.parametrize(
    "temporary",
    [(), pytest.param(("--temporary", "mock_first"), marks=pytest.mark.slow)],
    ids=["stored", "temporary"],
)
def test_options_file_with_retained_dataset_types_loses_no_product(
    job_repo: JobRepo, run_job: Callable[..., Result], tmp_path: Path, temporary: tuple[str, ...]
) -> None:
    chain = f"retained/{len(temporary)}"
    early = [*job_repo.arguments, "--output-run", f"{chain}/early", "--select-tasks", "<=second"]
    assert run_job(*early, *temporary, "--backend", "serial").exit_code == 0
    retained, options = tmp_path / "retained.yaml", tmp_path / "options.yaml"
    retained.write_text("- mock_fir*\n")
    options.write_text(f"run:\n  skip-existing-in: [{chain}/early]\n  retained-dataset-types: {retained}\n")
    given: list[str | Path] = [
        "-b",
        job_repo.root,
        "-p",
        job_repo.pipeline,
        "-i",
        f"{chain}/early,defaults",
        "-@",
        options,
    ]
    result = run_job(*given, "--output-run", f"{chain}/spark", "--backend", "serial")
    assert result.exit_code == 0, result.output
    found = job_repo.datasets(f"{chain}/spark")
    # mock_second is not in the list, so that what made it runs again.
    assert {"mock_second", "mock_gather", "mock_scatter"} <= {each[0] for each in found}
    if temporary:
        # What was temporary is nowhere, whatever the list claims.
        assert ("mock_first", "Cam1", 1) in found
        return
    assert ("mock_first", "Cam1", 1) not in found
    pipetask_run(*given, "--output-run", f"{chain}/stock")
    assert found == job_repo.datasets(f"{chain}/stock")
