"""A repository for the tests of the job, and the job in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.pipe.base import Pipeline
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from spark_butler.cli.run import make_run_command
from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import EmbeddedS3
from tests.support.job_harness import PIPELINE, JobRepo
from tests.support.own_repo import OwnRepo


@pytest.fixture(scope="session")
def job_repo(s3_server: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> JobRepo:
    """The repository of all tests of the job; each writes to collections of its own."""
    directory = tmp_path_factory.mktemp("job")
    s3_server.make_bucket("job-tests")
    pipeline = directory / "pipeline.yaml"
    pipeline.write_text(PIPELINE)
    root = make_repository(directory / "repo", "s3://job-tests/repo/")
    with Butler.from_config(root, writeable=True) as butler:
        mock = DirectButlerRepo(butler, "base.yaml", input_run="raw/all", input_chain="defaults")
        mock.pipeline_graph = Pipeline.from_uri(pipeline).to_graph()
        mock.pipeline_graph.resolve(butler.registry)
        mock.insert_datasets("mock_raw")
        mock.pipeline_graph.register_dataset_types(butler)
    return JobRepo(root, pipeline, "job-tests", s3_server)


@pytest.fixture
def own_repo(s3_bucket: str, s3_server: EmbeddedS3, tmp_path: Path, job_repo: JobRepo) -> Iterator[OwnRepo]:
    """An empty repository, for runs with inputs from `job_repo`."""
    root = make_repository(tmp_path / "own", f"s3://{s3_bucket}/repo/")
    yield OwnRepo(root, s3_bucket, s3_server, job_repo.pipeline)
    s3_server.remove_keys(s3_bucket, s3_server.list_keys(s3_bucket))


@pytest.fixture
def run_job(request: pytest.FixtureRequest) -> Iterator[Callable[..., Result]]:
    """Run the command in this process, on the one Spark session if the test may use Spark."""
    if "jvm" in request.keywords:
        request.getfixturevalue("spark")

    def run(*arguments: str | Path) -> Result:
        CliLog.resetLog()
        command = make_run_command("process_ccd.py")
        return CliRunner().invoke(command, [str(each) for each in arguments], prog_name="process_ccd.py")

    yield run
    CliLog.resetLog()
