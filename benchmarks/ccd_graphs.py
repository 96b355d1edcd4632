"""Quantum graphs of process_ccd for benchmarks, from a simulated night or from real frames."""

from __future__ import annotations

__all__ = ["make_graph", "prepare_observed", "prepare_simulated"]

from pathlib import Path

from lsst.daf.butler import Butler
from mock_graphs import MODULES, RUN

from spark_butler.demo.night import INSTRUMENT, NIGHT_COLLECTION, ingest_night
from spark_butler.demo.repository import make_repository
from spark_butler.demo.simulation import simulate
from spark_butler.obs.calibs import ingest_calibs
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.obs.visits import define_visits
from tests.support.stock import run_pipetask

_CONF = Path(__file__).resolve().parents[1] / "conf"
_PIPELINE = _CONF / "pipelines" / "process_ccd.yaml"
_SCIENCE = "instrument='{}' AND exposure.observation_type='science'"
_NIGHT = {"visits": 6, "detectors": 4, "size": 1024}


def prepare_simulated(folder: Path, datastore: str, subset: str = "") -> tuple[Path, Path]:
    """Simulate a night, ingest it and build the graph.

    Parameters
    ----------
    folder
        Where to put everything.
    datastore
        Address of a place in an object store.
    subset
        Subset of the pipeline, such as ``#isr``; empty for the whole pipeline.

    Returns
    -------
    repo
        The repository.
    graph
        File of the graph, whose output run is `mock_graphs.RUN`.
    """
    folder.mkdir(parents=True)
    night = simulate(folder / "night", seed=5, **_NIGHT)
    repo = make_repository(folder / "repo", datastore)
    with Butler.from_config(repo, writeable=True) as butler:
        ingest_night(butler, night)
    return repo, make_graph(
        folder, repo, f"{_PIPELINE}{subset}", NIGHT_COLLECTION, _SCIENCE.format(INSTRUMENT)
    )


def prepare_observed(folder: Path, datastore: str, frames: Path) -> tuple[Path, Path]:
    """Ingest real frames of the camera ``opd_ixon`` and build the graph.

    Parameters
    ----------
    folder
        Where to put everything.
    datastore
        Address of a place in an object store.
    frames
        Folder of the frames, with bias and flat frames among them.

    Returns
    -------
    repo
        The repository.
    graph
        File of the graph, whose output run is `mock_graphs.RUN`.
    """
    folder.mkdir(parents=True)
    repo = make_repository(folder / "repo", datastore)
    with Butler.from_config(repo, writeable=True) as butler:
        register_instrument(butler, _CONF / "cameras" / "opd_ixon.yaml")
        ingest_raws(butler, [frames], transfer="copy")
        for kind in ("bias", "flat"):
            ingest_calibs(butler, kind, [frames])
        define_visits(butler, "OPD-Ixon")
    return repo, make_graph(folder, repo, _PIPELINE, "OPD-Ixon/defaults", _SCIENCE.format("OPD-Ixon"))


def make_graph(folder: Path, repo: Path, pipeline: str | Path, collection: str, where: str) -> Path:
    """Build the graph of a pipeline, with the output run `mock_graphs.RUN`.

    Parameters
    ----------
    folder
        Where to put the graph.
    repo
        The repository.
    pipeline
        File of the pipeline, followed by a subset if only a part is to run.
    collection
        Collection of the inputs.
    where
        Expression that selects the data to process.
    """
    graph = folder / "graph.qg"
    query = ("-i", collection, "--output-run", RUN, "-d", where)
    run_pipetask(
        *("qgraph", "-b", repo, "-p", pipeline, *query, "-q", graph, "--qgraph-datastore-records"),
        paths=MODULES,
    )
    return graph
