from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

from spark_butler.demo.simulation import SimulatedData, simulate
from spark_butler.obs.calibs import ingest_calibs
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.refcats import ingest_refcats, parse_band_columns
from spark_butler.obs.register import register_instrument
from spark_butler.obs.visits import define_visits
from tests.tasks.processed_night import ProcessedNight

PIPELINES = Path(__file__).parents[2] / "conf" / "pipelines"


@pytest.fixture(scope="session")
def pipelines() -> Path:
    """Folder of the shipped pipelines."""
    return PIPELINES


@pytest.fixture(scope="session")
def process() -> Callable[..., str]:
    """Run a pipeline in this process: ``process(repo, pipeline, inputs, output, config={...})``."""

    def run(
        repo: str,
        pipeline_file: Path | str,
        inputs: list[str],
        output: str,
        *,
        where: str = "",
        config: dict[tuple[str, str], object] | None = None,
    ) -> str:
        pipeline = Pipeline.from_uri(str(pipeline_file))
        for (label, field), value in (config or {}).items():
            pipeline.addConfigOverride(label, field, value)
        butler = SimplePipelineExecutor.prep_butler(repo, inputs=inputs, output=output)
        executor = SimplePipelineExecutor.from_pipeline(pipeline, where=where, butler=butler)
        executor.run(register_dataset_types=True)
        return output

    return run


@pytest.fixture(scope="session")
def sim_night(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimulatedData, str]:
    """Two visits of two detectors with more stars than usual, and a repository with them."""
    root = tmp_path_factory.mktemp("process_ccd")
    simulated = simulate(
        root / "night",
        visits=2,
        detectors=2,
        size=384,
        seed=5,
        stars_per_arcmin2=60.0,
        galaxies_per_arcmin2=15.0,
    )
    repo = str(root / "repo")
    Butler.makeRepo(repo)
    butler = Butler.from_config(repo, writeable=True)
    register_instrument(butler, simulated.camera)
    ingest_raws(butler, [simulated.raw_dir], transfer="direct")
    for kind in ("bias", "dark", "flat"):
        ingest_calibs(butler, kind, [simulated.raw_dir])
    define_visits(butler, "SimCam")
    ingest_refcats(butler, "sim_refcat", [simulated.refcat], bands=[parse_band_columns("r=r_mag,r_mag_err")])
    return simulated, repo


@pytest.fixture(scope="session")
def processed(sim_night: tuple[SimulatedData, str], process: Callable[..., str]) -> ProcessedNight:
    """The simulated night with everything process_ccd makes of it."""
    simulated, repo = sim_night
    process(
        repo,
        PIPELINES / "process_ccd.yaml",
        ["SimCam/defaults", "refcats/sim_refcat"],
        "u/test/process_ccd",
        where="instrument='SimCam'",
        config={("calibrate", "connections.ref_cat"): "sim_refcat"},
    )
    return ProcessedNight(simulated, repo, "u/test/process_ccd")
