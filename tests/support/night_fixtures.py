"""Repositories of frames in a real S3 store, and the job in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.cli.run import make_run_command
from spark_butler.demo.night import ingest_night
from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.demo.simulation import simulate
from spark_butler.obs.calibs import ingest_calibs
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.obs.visits import define_visits
from tests.support.night_harness import CONF, PIPELINE, Night


@pytest.fixture(scope="session")
def simulated(s3_server: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Two visits of two small detectors, with reference catalog."""
    folder = tmp_path_factory.mktemp("simulated")
    night = simulate(folder / "night", visits=2, detectors=2, size=200, seed=3, stars_per_arcmin2=60.0)
    s3_server.make_bucket("simulated")
    repo = make_repository(folder / "repo", "s3://simulated/repo/")
    with Butler.from_config(repo, writeable=True) as butler:
        ingest_night(butler, night)
    return Night(repo, "simulated", "SimCam", s3_server)


@pytest.fixture(scope="session")
def observed(s3_server: EmbeddedS3, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Five real frames of a nebulous field, with bias and flat frames."""
    data = shared_data / "opd_ngc346"
    if not data.is_dir():
        pytest.skip(f"no real data in {data}")
    s3_server.make_bucket("observed")
    repo = make_repository(tmp_path_factory.mktemp("observed") / "repo", "s3://observed/repo/")
    with Butler.from_config(repo, writeable=True) as butler:
        register_instrument(butler, CONF / "cameras" / "opd_ixon.yaml")
        ingest_raws(butler, [data], transfer="copy")
        for kind in ("bias", "flat"):
            ingest_calibs(butler, kind, [data])
        define_visits(butler, "OPD-Ixon")
    return Night(repo, "observed", "OPD-Ixon", s3_server)


@pytest.fixture(scope="session")
def run_night() -> Iterator[Callable[..., Result]]:
    """Run process_ccd in this process: ``run_night(night, output, *arguments)``."""

    def run(night: Night, output: str, *arguments: str) -> Result:
        CliLog.resetLog()
        command = make_run_command("process_ccd.py", PIPELINE)
        fixed = ["-b", str(night.repo), "-i", f"{night.instrument}/defaults", "-o", output]
        query = ["-d", f"instrument='{night.instrument}'", "--register-dataset-types"]
        return CliRunner().invoke(command, [*fixed, *query, *arguments], prog_name="process_ccd.py")

    yield run
    CliLog.resetLog()
