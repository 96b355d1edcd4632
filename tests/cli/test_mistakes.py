"""Typical mistakes: each ends in one line with a remedy, with exit status 2, and nothing is written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.pipe.base import Pipeline
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from spark_butler import SparkButler
from spark_butler.cli.main import main
from spark_butler.demo.repository import make_repository
from spark_butler.errors import SparkButlerError
from spark_butler.spark.preflight import check_workers
from tests.support.job_harness import PIPELINE

_RUN = "run -b {repo} -p {pipeline} -i defaults -o u/x --register-dataset-types"

# Name of the mistake, the command, and the remedy in its error.
_COMMANDS = [
    ("option", f"{_RUN} --temporry auto", "Did you mean '--temporary'?"),
    ("value of an option", f"{_RUN} --retries -1", "--retries is -1; expected 0 or more."),
    ("command", "stauts {repo}", "did you mean 'status'?"),
    ("options file", f"{_RUN} -@ /none/night.yaml", "See `spark-butler run --help`."),
    ("repository", "run -b {folder}/rep -p {pipeline} -i defaults -o u/x", "make one by `butler create "),
    ("repository of another command", "status {folder}/rep", "make one by `butler create "),
    ("collection", f"{_RUN} -i defualts", "did you mean 'defaults'?"),
    ("output", f"{_RUN} --output-run raw/[al]", "expected a name"),
    ("run of status", "status {repo} u/x", "`spark-butler status {repo}` lists the runs."),
    ("run of report", "report {repo} raw/al", "`spark-butler status {repo}` lists the runs."),
    ("run of cancel", "cancel {repo} u/x", "`spark-butler status {repo}` lists the runs."),
    ("run of cleanup", "cleanup {repo} --run raw/al", "did you mean 'raw/all'?"),
    ("instrument", "obs define-visits {repo} Cam2", "did you mean 'Cam1'?"),
    ("collection of show", "show {repo} raw/*", "expected a name without *"),
    ("collection of catalog", "catalog {repo} raw/al --csv x.csv", "did you mean 'raw/all'?"),
    ("type of catalog", "catalog {repo} raw/all --csv x --dataset-type mock_rwa", "did you mean 'mock_raw'?"),
    (
        "dataset type of the pipeline",
        "run -b {repo} -p {folder}/type.yaml -i defaults -o u/x",
        "did you mean 'mock_raw'?",
    ),
    ("mocked input", f"{_RUN} --mock", "give --unmocked-dataset-types mock_raw"),
    ("temporary", f"{_RUN} --temporary mock_frist", "did you mean 'mock_first'"),
    (
        "task",
        "run -b {repo} -i defaults -o u/x -t lsst.pipe.base.PipelineTsk",
        "did you mean 'PipelineTask'?",
    ),
    ("module of a task", "run -b {repo} -i defaults -o u/x -t no.such.Task", "put its folder on PYTHONPATH"),
    ("label", f"{_RUN} -c frist:sleep=1", "did you mean 'first'?"),
    ("label of --delete", f"{_RUN} --delete frist", "did you mean 'first'?"),
    ("label behind #", "run -b {repo} -p {pipeline}#frist -i defaults -o u/x", "did you mean 'first'?"),
    ("label of --select-tasks", f"{_RUN} --select-tasks <=frist", "did you mean 'first'?"),
    ("field", f"{_RUN} -c first:slep=1", "did you mean 'sleep'?"),
    ("value of a field", f"{_RUN} -c first:sleep=abc", "Expected type float"),
    ("form of a change", f"{_RUN} -c first=1", "--config is 'first=1'; expected LABEL:NAME=VALUE."),
    ("name in a query", f"{_RUN} -d detectr=1", "did you mean 'detector'?"),
    ("field in a query", f"{_RUN} -d detector.full_nam='x'", "did you mean 'full_name'?"),
    ("text in a query", f"{_RUN} -d instrument=Camera", "write texts in quotes: 'Camera'."),
    ("syntax of a query", f"{_RUN} -d 'detector ='", "expected an expression such as "),
    ("query of nothing", f"{_RUN} -d 'detector = 77'", "lists the inputs that exist."),
    (
        "pipeline",
        "run -b {repo} -p {folder}/pipelin.yaml -i defaults -o u/x",
        "did you mean 'pipeline.yaml'?",
    ),
    ("YAML", "run -b {repo} -p {folder}/broken.yaml -i defaults -o u/x", "line 2, column 17: expected"),
    ("resources", f"{_RUN} --resources {{folder}}/resources.yaml", "did you mean 'requestMemory'?"),
    (
        "types",
        "run -b {repo} -p {pipeline} -i defaults -o u/x",
        "give --register-dataset-types to register them",
    ),
    ("Java", _RUN, "install a JDK of release 17 or newer"),
    ("scene", "demo simulate {folder}/x --scene vignetd", "did you mean 'vignetted'?"),
]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A repository with inputs, to which nothing is written, a pipeline, and files with mistakes."""
    folder = tmp_path_factory.mktemp("mistakes")
    pipeline, repo = folder / "pipeline.yaml", folder / "repo"
    pipeline.write_text(PIPELINE)
    (folder / "type.yaml").write_text(PIPELINE.replace("mock_raw", "mock_rwa"))
    (folder / "broken.yaml").write_text("description: x\ntasks: [first: {")
    (folder / "resources.yaml").write_text("requestMemry: 5\n")
    Butler.makeRepo(repo)
    with Butler.from_config(repo, writeable=True) as butler:
        mock = DirectButlerRepo(butler, "base.yaml", input_run="raw/all", input_chain="defaults")
        mock.pipeline_graph = Pipeline.from_uri(pipeline).to_graph()
        mock.pipeline_graph.resolve(butler.registry)
        mock.insert_datasets("mock_raw")
    names = {"folder": folder, "pipeline": pipeline, "repo": repo}
    before = _contents(names)
    yield names
    assert _contents(names) == before


def _contents(names: dict[str, Path]) -> set[object]:
    """All that a command might write."""
    with Butler.from_config(names["repo"], writeable=False) as butler:
        types = {each.name for each in butler.registry.queryDatasetTypes()}
        return {*butler.collections.query("*"), *types, *names["folder"].rglob("*")}


def _refuse(names: dict[str, Path], text: str) -> str:
    """Run a command, which must refuse, and return its line."""
    CliLog.resetLog()
    result = CliRunner().invoke(main, shlex.split(text.format(**names)), prog_name="spark-butler")
    CliLog.resetLog()
    assert result.exit_code == 2, result.output
    assert not result.stdout
    (line,) = (line for line in result.stderr.splitlines() if " WARNING " not in line)
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(("mistake", "command", "remedy"), _COMMANDS, ids=[row[0] for row in _COMMANDS])
def test_mistake_is_one_line_with_a_remedy(
    names: dict[str, Path], mistake: str, command: str, remedy: str
) -> None:
    assert remedy.format(**names) in _refuse(names, command)


def test_input_that_may_be_absent_is_no_mistake(names: dict[str, Path]) -> None:
    line = 'config.inputs["raw"] = C('
    assert line in PIPELINE
    settings = 'dataset_type_name="mock_more", dimensions=["detector"], minimum=0'
    optional = f'config.prerequisite_inputs["more"] = C({settings})'
    pipeline = names["folder"] / "optional.yaml"
    pipeline.write_text(PIPELINE.replace(line, f"{optional}\n        {line}"))
    given = ["plan", "-b", str(names["repo"]), "-i", "defaults", "-o", "u/x", "--register-dataset-types"]
    result = CliRunner().invoke(main, [*given, "-p", str(pipeline)])
    pipeline.unlink()
    assert result.exit_code == 0, result.output


def test_old_python_is_one_line(names: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 11, 2, "final", 0))
    assert "Rubin's middleware needs 3.12 or newer" in _refuse(names, _RUN)


def test_unreadable_store_is_one_line(
    names: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    repo = make_repository(tmp_path / "repo", "s3://bucket/repo/")
    line = _refuse(names, f"run -b {repo} -p {{pipeline}} -i defaults -o u/x")
    assert "can't be reached" in line
    assert "http://127.0.0.1:1" in line


class _Context(SimpleNamespace):
    """Stands for a Spark context: its worker is this process."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: None

    def parallelize(self, values: Any, n: int) -> Any:
        def apply(function: Callable[[Any], Any]) -> Any:
            return SimpleNamespace(collect=lambda: [function(value) for value in values])

        return SimpleNamespace(map=apply)


def test_module_that_workers_lack_is_one_line() -> None:
    with pytest.raises(SparkButlerError) as caught:
        check_workers(_Context(defaultParallelism=1), ["no_such_module"])  # type: ignore[arg-type]
    text = str(caught.value)
    assert "there is no module 'no_such_module'. Install it where workers run" in text
    assert "\n" not in text


# What is wrong in a notebook, and the remedy.
_CALLS: list[tuple[str, Callable[[SparkButler, Path], object], str]] = [
    ("argument", lambda b, p: b.run(p, output="u/x", temporay="auto"), "did you mean 'temporary'?"),  # type: ignore[call-arg]
    ("dataset type", lambda b, p: b.data_ids("mock_rwa"), "did you mean 'mock_raw'?"),
    ("collection", lambda b, p: b.data_ids("mock_raw", collections="defualts"), "did you mean 'defaults'?"),
    ("query", lambda b, p: b.data_ids("mock_raw", where="detectr = 1"), "did you mean 'detector'?"),
    ("pipeline", lambda b, p: b.plan(str(p)[:-1], output="u/x"), "did you mean 'pipeline.yaml'?"),
]


@pytest.mark.parametrize(("mistake", "call", "remedy"), _CALLS, ids=[row[0] for row in _CALLS])
def test_mistake_in_a_notebook_is_one_line_with_a_remedy(
    names: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
    call: Callable[[SparkButler, Path], object],
    remedy: str,
) -> None:
    monkeypatch.setattr("spark_butler.spark._pyspark.is_stopped", lambda context: False)
    session: Any = SimpleNamespace(sparkContext=SimpleNamespace(defaultParallelism=2))
    monkeypatch.setattr("spark_butler.notebook.butler._register_source", lambda session: None)
    butler = SparkButler(names["repo"], collections="defaults", spark=session)
    with pytest.raises(SparkButlerError) as caught:
        call(butler, names["pipeline"])
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stopped_session_is_one_line(names: dict[str, Path]) -> None:
    session: Any = SimpleNamespace(sparkContext=None)
    with pytest.raises(SparkButlerError, match=r"session was stopped.*: start a new session"):
        SparkButler(names["repo"], collections="defaults", spark=session)
