"""A run that isn't possible is refused in one line, with exit status 2 and nothing written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from lsst.daf.butler import Butler
from lsst.resources.s3utils import _get_s3_client
from pyspark.sql import SparkSession

from spark_butler.errors import SessionError
from spark_butler.spark.session import _check_master
from tests.support.job_harness import JOB, JobRepo, submit
from tests.support.sealed_registry import sealed_registry

type RunJob = Callable[..., Result]


def _assert_refused(result: Result, *words: str) -> str:
    """One line, exit status 2, no traceback, no secret; all words in it."""
    text = result.output + result.stderr
    assert result.exit_code == 2, text
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in text
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    for word in words:
        assert word in lines[0]
    assert result.stderr.rstrip().splitlines()[-1] == lines[0]
    return lines[0]


@pytest.fixture(scope="class")
def unchanged(job_repo: JobRepo) -> Iterator[None]:
    """Make sure that the tests of a class write nothing to the repository."""
    before = job_repo.contents()
    yield
    assert job_repo.contents() == before


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Make S3 clients anew, for the environment of this test."""
    _get_s3_client.cache_clear()
    yield
    _get_s3_client.cache_clear()


@pytest.mark.usefixtures("unchanged")
class TestRepository:
    """The repository can't be used."""

    def test_does_not_exist(self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
        result = run_job("-b", tmp_path / "nowhere", "-o", "u/x", "-p", job_repo.pipeline)
        _assert_refused(result, "no Butler repository", "nowhere")
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.usefixtures("fresh_clients")
    def test_endpoint_refuses(
        self, job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
        start = time.monotonic()
        _assert_refused(run_job(*job_repo.arguments, "-o", "u/x"), "can't be reached", "http://127.0.0.1:1")
        assert time.monotonic() - start < 15

    @pytest.mark.usefixtures("fresh_clients")
    def test_endpoint_of_configuration_refuses(
        self, job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
        start = time.monotonic()
        result = run_job("-b", "s3://some-bucket/repo/butler.yaml", "-o", "u/x", "-p", job_repo.pipeline)
        _assert_refused(result, "can't be reached", "s3://some-bucket/repo/butler.yaml")
        assert time.monotonic() - start < 15

    @pytest.mark.usefixtures("fresh_clients")
    def test_endpoint_is_something_else(
        self, job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            # Accepted by the system and never answered, like a hung gateway.
            monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
            monkeypatch.setattr("spark_butler.repository.store_checks._READ_SECONDS", 1)
            start = time.monotonic()
            _assert_refused(run_job(*job_repo.arguments, "-o", "u/x"), "can't be reached")
            assert time.monotonic() - start < 15

    @pytest.mark.parametrize(
        ("name", "value"),
        [("AWS_SECRET_ACCESS_KEY", "not-the-secret-key"), ("AWS_ACCESS_KEY_ID", "absent-id")],
    )
    @pytest.mark.usefixtures("fresh_clients")
    def test_wrong_credentials(
        self, job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        monkeypatch.setenv(name, value)
        result = run_job(*job_repo.arguments, "-o", "u/x", "--log-level", ".=DEBUG")
        line = [each for each in result.stderr.splitlines() if each.startswith("Error: ")]
        assert result.exit_code == 2
        assert len(line) == 1
        assert "s3://job-tests/repo/" in line[0]
        assert "key" in line[0]
        assert secret not in result.output + result.stderr
        assert "not-the-secret-key" not in result.output + result.stderr

    def test_read_only_registry(self, job_repo: JobRepo, run_job: RunJob) -> None:
        with sealed_registry():
            result = run_job(*job_repo.arguments, "--output-run", "u/x", "--backend", "serial")
        _assert_refused(result, "readonly database")

    def test_missing_bucket(self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
        root = tmp_path / "repo"
        shutil.copytree(job_repo.root, root)
        config = root / "butler.yaml"
        config.write_text(config.read_text().replace("s3://job-tests/", "s3://no-such-bucket/"))
        result = run_job("-b", root, "-i", "defaults", "-o", "u/x", "-p", job_repo.pipeline)
        _assert_refused(result, "s3://no-such-bucket/repo/", "no such bucket")

    @pytest.mark.parametrize("damage", ["missing", "garbled"])
    def test_registry_file(self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path, damage: str) -> None:
        root = tmp_path / "repo"
        shutil.copytree(job_repo.root, root)
        database = root / "gen3.sqlite3"
        database.unlink()
        if damage == "garbled":
            database.write_bytes(b"no database, " * 100)
        before = sorted(root.iterdir())
        result = run_job("-b", root, "-i", "defaults", "-o", "u/x", "-p", job_repo.pipeline)
        _assert_refused(result, "Can't open the Butler repository", "database")
        assert sorted(root.iterdir()) == before


@pytest.mark.usefixtures("unchanged")
class TestRequest:
    """The options ask for what can't be."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            pytest.param("-c first", ["'first'"], id="config-syntax"),
            pytest.param("-C first:no.py", ["no.py"], id="config-file"),
            pytest.param("-c first:connections.nothing=new", ["nothing"], id="connection"),
            pytest.param("-c second:fail_condition=detector..", ["second", "position 8"], id="constructor"),
            pytest.param(
                "-d \"instrument='Cam1' AND detector = 77\"", ["detector = 77", "empty"], id="query-empty"
            ),
            pytest.param("-o raw/all", ["raw/all"], id="output-is-a-run"),
            pytest.param("--output-run ../x", ["'../x'", "u/me/first"], id="run-outside"),
            pytest.param("-o u --output-run raw/all", ["raw/all", "--extend-run"], id="run-exists"),
            pytest.param("--output-run u/none --extend-run", ["u/none"], id="run-is-missing"),
            pytest.param("-o u/none --extend-run", ["--extend-run"], id="chain-is-missing"),
            pytest.param("-o u/none --replace-run", ["--replace-run"], id="nothing-to-replace"),
            pytest.param("--store nothing*", ["--store", "nothing*"], id="store"),
            pytest.param("--show nothing", ["nothing"], id="show"),
            pytest.param("--pdb=pdb", ["--pdb"], id="pdb"),
            pytest.param("--start-method spawn", ["--start-method"], id="start-method"),
            pytest.param("--profile p", ["--profile"], id="profile"),
            pytest.param("--coverage", ["--coverage"], id="coverage"),
            pytest.param("-j 0", ["processes", "0"], id="processes"),
            pytest.param("--timeout 0", ["timeout", "0"], id="timeout"),
            pytest.param("--memory-per-quantum plenty", ["plenty"], id="memory"),
            pytest.param("--graph-fixup no.such.Fixup", ["no.such.Fixup"], id="graph-fixup"),
        ],
    )
    def test_refused(self, job_repo: JobRepo, run_job: RunJob, arguments: str, words: list[str]) -> None:
        given = shlex.split(arguments)
        defaults = {"-i": "defaults", "-o": "u/x", "-p": str(job_repo.pipeline)}
        if "-t" in given:
            del defaults["-p"]
        more = [each for name, value in defaults.items() if name not in given for each in (name, value)]
        _assert_refused(run_job("-b", job_repo.root, *given, *more), *words)

    def test_empty_query_is_explained_in_one_line(self, job_repo: JobRepo, run_job: RunJob) -> None:
        query = "instrument='Cam1' AND detector = 77"
        line = _assert_refused(run_job(*job_repo.arguments, "-o", "u/x", "-d", query))
        assert line == (
            f"Error: The quantum graph is empty (data query {query!r}): "
            "Initial data ID query returned no rows, so QuantumGraph will be empty; "
            f"`butler query-datasets {job_repo.root} --collections defaults` lists the inputs that exist."
        )

    def test_no_output(self, job_repo: JobRepo, run_job: RunJob) -> None:
        _assert_refused(run_job(*job_repo.arguments), "--output", "--output-run")

    @pytest.mark.parametrize("option", ["--output", "--output-run"])
    @pytest.mark.parametrize("name", ["u/[ab]{c}/x", "u/*", "u/x?", " u/x", "u/x,y", "u/x\n", "u/{x}"])
    def test_pattern_as_output_is_refused_and_nothing_is_written(
        self, job_repo: JobRepo, run_job: RunJob, option: str, name: str
    ) -> None:
        with Butler.from_config(job_repo.root, writeable=False) as butler:
            before = set(butler.collections.query("*"))
            _assert_refused(run_job(*job_repo.arguments, option, name), option, repr(name), "expected a name")
            assert set(butler.collections.query("*")) == before

    def test_unregistered_dataset_types(self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
        pipeline = tmp_path / "pipeline.yaml"
        pipeline.write_text(job_repo.pipeline.read_text().replace("mock_scatter", "mock_unknown"))
        arguments = ["-b", job_repo.root, "-i", "defaults", "-p", pipeline]
        for more in ([], ["--dry-run"]):
            result = run_job(*arguments, "-o", "u/x", *more)
            _assert_refused(result, "mock_unknown", "--register-dataset-types")

    def test_other_definition_of_a_dataset_type(
        self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path
    ) -> None:
        pipeline = tmp_path / "pipeline.yaml"
        text = job_repo.pipeline.read_text()
        old = 'C(dataset_type_name="mock_scatter", dimensions=["detector"])'
        assert old in text
        new = 'C(dataset_type_name="mock_scatter", dimensions=["instrument"])'
        pipeline.write_text(text.replace(old, new))
        result = run_job("-b", job_repo.root, "-i", "defaults", "-p", pipeline, "-o", "u/x")
        _assert_refused(result, "mock_scatter")

    @pytest.mark.parametrize("content", ["", "first", "- 1", "[unclosed", "\x00\x01"])
    def test_file_of_patterns(self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path, content: str) -> None:
        file = tmp_path / "patterns.yaml"
        file.write_text(content)
        for option in ("--store", "--retained-dataset-types"):
            result = run_job(*job_repo.arguments, "-o", "u/x", "--skip-existing-in", "raw/all", option, file)
            _assert_refused(result, option, "patterns.yaml")

    def test_retained_dataset_types_where_nothing_is_skipped(
        self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path
    ) -> None:
        file = tmp_path / "patterns.yaml"
        file.write_text("- mock_second\n")
        result = run_job(*job_repo.arguments, "-o", "u/x", "--retained-dataset-types", file)
        _assert_refused(result, "patterns.yaml", "--skip-existing-in", "--store")

    @pytest.mark.parametrize("name", ["none.qg", "none.qgraph", "corrupt.qg", "corrupt.qgraph", "graph.yaml"])
    def test_graph_file(self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path, name: str) -> None:
        file = tmp_path / name
        if not name.startswith("none"):
            file.write_bytes(b"This is no quantum graph." * 50)
        _assert_refused(run_job("-b", job_repo.root, "-g", file), name)

    def test_graph_and_pipeline(self, job_repo: JobRepo, run_job: RunJob, tmp_path: Path) -> None:
        file = tmp_path / "graph.qg"
        _assert_refused(run_job(*job_repo.arguments, "-g", file), "graph.qg", "--pipeline")
        result = run_job("-b", job_repo.root, "-g", file, "-c", "first:sleep=1")
        _assert_refused(result, "graph.qg", "config")

    def test_nothing_to_run(self, job_repo: JobRepo, run_job: RunJob) -> None:
        result = run_job("-b", job_repo.root, "-i", "defaults", "-o", "u/x")
        _assert_refused(result, "--pipeline", "--task", "--qgraph")


@pytest.mark.usefixtures("unchanged")
class TestPlatform:
    """Python, Java or Spark won't do."""

    def test_spark_remote(self, job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SPARK_REMOTE", "sc://localhost:15002")
        _assert_refused(run_job(*job_repo.arguments, "-o", "u/x"), "Spark Connect", "sc://localhost:15002")

    @pytest.mark.parametrize(
        "conf", [{"spark.remote": "sc://localhost:15002"}, {"spark.api.mode": "connect"}], ids=str
    )
    def test_connect_by_spark_submit(
        self, job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch, conf: dict[str, str]
    ) -> None:
        monkeypatch.setenv("PYSPARK_REMOTE_INIT_CONF_LEN", "1")
        monkeypatch.setenv("PYSPARK_REMOTE_INIT_CONF_0", json.dumps(conf))
        _assert_refused(run_job(*job_repo.arguments, "-o", "u/x"), "Spark Connect")

    @pytest.mark.slow
    @pytest.mark.jvm
    def test_spark_submit_remote(self, job_repo: JobRepo) -> None:
        process = submit(*job_repo.arguments, "-o", "u/x", where=("--remote", "sc://localhost:15002"))
        assert process.returncode == 2
        lines = [line for line in process.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, process.stderr
        assert "spark-submit was given --remote sc://localhost:15002" in lines[0]
        assert "Error: " not in process.stdout
        assert "Traceback" not in process.stdout + process.stderr

    def test_old_python(self, job_repo: JobRepo, run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "version_info", (3, 11, 2, "final", 0))
        _assert_refused(run_job(*job_repo.arguments, "-o", "u/x"), "Python", "3.12")

    def test_master_that_does_not_answer(self) -> None:
        with pytest.raises(SessionError, match="'spark://127.0.0.1:1,nohost' .*127.0.0.1:1: .*nohost"):
            _check_master("spark://127.0.0.1:1,nohost")
        with socket.create_server(("127.0.0.1", 0)) as server:
            _check_master(f"spark://127.0.0.1:1,127.0.0.1:{server.getsockname()[1]}")
        _check_master("local[2]")

    @pytest.mark.slow
    def test_workers_without_a_way_to_the_store(
        self, job_repo: JobRepo, run_job: RunJob, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The same address has another meaning in the driver than in workers, which have nothing of the kind.
        monkeypatch.setattr("spark_butler.run.check_repository", lambda repo: ["s3://only-in-the-driver/"])
        result = run_job(*job_repo.arguments, "-o", "u/x")
        _assert_refused(result, "Workers of Spark", "s3://only-in-the-driver/", "no such bucket")

    def test_job_of_an_old_python(self) -> None:
        python = shutil.which("python3.11") or shutil.which("python3.10") or shutil.which("python3.9")
        if python is None:
            pytest.skip("no older Python on this machine")
        process = subprocess.run([python, "-I", JOB, "-b", "x"], capture_output=True, text=True)
        assert process.returncode == 2
        assert len(process.stderr.splitlines()) == 1
        assert "3.12" in process.stderr

    def test_old_java(self, job_repo: JobRepo, tmp_path: Path) -> None:
        program = tmp_path / "jdk" / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text(
            "#!/bin/sh\necho '    java.specification.version = 11' >&2\n"
            f"echo '    java.home = {tmp_path}/jdk' >&2\n"
        )
        program.chmod(0o755)
        # In a process of its own: this one may have a JVM already.
        quiet = ("--no-versions", "--log-level", "WARNING")
        process = subprocess.run(
            [sys.executable, JOB, *job_repo.arguments, "-o", "u/x", *quiet],
            env={**os.environ, "JAVA_HOME": f"{tmp_path}/jdk"},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 2, process.stderr
        assert process.stderr.startswith("Error: JAVA_HOME is"), process.stderr
        assert len(process.stderr.splitlines()) == 1
        assert "Java 11" in process.stderr


def test_read_only_registry_refuses_a_resume(job_repo: JobRepo, run_job: RunJob) -> None:
    arguments = [*job_repo.arguments, "--output-run", "u/sealed", "--backend", "serial", "--no-versions"]
    first = run_job(*arguments, "-d", "detector = 1")
    assert first.exit_code == 0, first.output
    before = job_repo.contents()
    with sealed_registry():
        result = run_job(*arguments, "--extend-run", "--skip-existing")
    _assert_refused(result, "readonly database")
    assert job_repo.contents() == before
