from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lsst.daf.butler import Butler

from spark_butler.demo.simulation import SimulatedData, simulate
from spark_butler.obs.calibs import ingest_calibs
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.refcats import ingest_refcats, parse_band_columns
from spark_butler.obs.register import register_instrument
from spark_butler.obs.visits import define_visits


@pytest.fixture(scope="session")
def cameras() -> Path:
    """Folder of the shipped camera descriptions."""
    return Path(__file__).parents[2] / "conf" / "cameras"


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> SimulatedData:
    """Two visits of two small detectors."""
    return simulate(tmp_path_factory.mktemp("night"), visits=2, detectors=2, size=256, seed=3)


@pytest.fixture(scope="session")
def empty_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository, to be copied."""
    root = tmp_path_factory.mktemp("empty") / "repo"
    Butler.makeRepo(str(root))
    return root


@pytest.fixture
def repo(empty_repo: Path, tmp_path: Path) -> Path:
    """An empty repository."""
    return shutil.copytree(empty_repo, tmp_path / "repo")


@pytest.fixture
def butler(repo: Path) -> Butler:
    return Butler.from_config(str(repo), writeable=True)


@pytest.fixture
def simcam(butler: Butler, night: SimulatedData) -> Butler:
    """A repository that knows the simulated camera."""
    register_instrument(butler, night.camera)
    return butler


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory, night: SimulatedData) -> Butler:
    """A repository with the whole night; tests must not change it."""
    root = str(tmp_path_factory.mktemp("ingested") / "repo")
    Butler.makeRepo(root)
    butler = Butler.from_config(root, writeable=True)
    register_instrument(butler, night.camera)
    ingest_raws(butler, [night.raw_dir], transfer="direct")
    for kind in ("bias", "dark", "flat"):
        ingest_calibs(butler, kind, [night.raw_dir])
    define_visits(butler, "SimCam")
    ingest_refcats(butler, "sim_refcat", [night.refcat], bands=[parse_band_columns("r=r_mag,r_mag_err")])
    return Butler.from_config(root)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a folder of real data, or skip where it is not on this machine."""
    root = Path(os.environ.get("SPARK_BUTLER_DATA", Path(__file__).parents[3] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real data {name} are neither in $SPARK_BUTLER_DATA nor in ../shared/data")
        return root / name

    return find
