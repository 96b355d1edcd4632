"""Graphs of mock quanta for benchmarks: isr, calibrate, a gather per visit, a coadd per detector."""

from __future__ import annotations

__all__ = ["MODULES", "RUN", "SIZES", "prepare_graph"]

from collections.abc import Callable
from pathlib import Path

from spark_butler.demo.repository import make_repository
from tests.support.mock_night import CAMERA, fill_mock_night, task_text
from tests.support.stock import run_pipetask

RUN = "u/bench/run"
"""The output run of all graphs."""

SIZES = {40: (4, 4), 160: (8, 9), 400: (12, 16), 500: (14, 17), 4_000: (40, 49), 40_000: (200, 99)}
"""Numbers of visits and detectors, by the approximate number of quanta."""

MODULES = (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1])
"""Folders of the modules of benchmarks and tests, for ``PYTHONPATH``."""

_CCD = ("visit", "detector")


def _pipeline(seconds: float, *, mixed: bool) -> str:
    times = (f"config.seconds = {seconds}", f"config.mixed = {mixed}")
    task = "timed_tasks.TimedTask"
    many = 'many = ["visit", "detector"]'
    return (
        "description: A night of mock tasks.\ntasks:"
        + task_text(
            "isr",
            task,
            _CCD,
            *times,
            many,
            'config.inputs["flat"] = C(dataset_type_name="flat", dimensions=["detector"])',
            'config.outputs["out"] = C(dataset_type_name="cleaned", dimensions=many)',
        )
        + task_text(
            "calibrate",
            task,
            _CCD,
            *times,
            many,
            'config.inputs["in"] = C(dataset_type_name="cleaned", dimensions=many)',
            'config.outputs["image"] = C(dataset_type_name="calibrated", dimensions=many)',
            'config.outputs["sources"] = C(dataset_type_name="sources", dimensions=many)',
        )
        + task_text(
            "gather",
            task,
            ("visit",),
            *times,
            many,
            'config.inputs["in"] = C(dataset_type_name="sources", dimensions=many, multiple=True)',
            'config.outputs["out"] = C(dataset_type_name="visit_out", dimensions=["visit"])',
        )
        + task_text(
            "coadd",
            task,
            ("detector",),
            *times,
            many,
            'config.inputs["in"] = C(dataset_type_name="calibrated", dimensions=many, multiple=True)',
            'config.inputs["visits"] = C(dataset_type_name="visit_out", dimensions=["visit"], multiple=True)',
            'config.outputs["out"] = C(dataset_type_name="coadd_out", dimensions=["detector"])',
        )
    )


def prepare_graph(
    folder: Path,
    datastore: str,
    size: int,
    *,
    seconds: float = 0.0,
    mixed: bool = False,
    make: Callable[[Path, str], Path] = make_repository,
) -> tuple[Path, Path]:
    """Make a repository, and build a graph for it.

    Parameters
    ----------
    folder
        Where to put them.
    datastore
        Address of a place in an object store.
    size
        One of `SIZES`.
    seconds
        Time of each quantum, in seconds.
    mixed
        Whether the times of quanta differ.
    make
        Function that makes the repository.

    Returns
    -------
    repo
        The repository.
    graph
        File of the graph, whose output run is `RUN`.
    """
    visits, detectors = SIZES[size]
    folder.mkdir(parents=True)
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(_pipeline(seconds, mixed=mixed))
    repo = make(folder / "repo", datastore)
    fill_mock_night(repo, pipeline, visits=visits, detectors=detectors, inputs=("flat",))
    graph = folder / "graph.qg"
    query = ("-i", "inputs", "--output-run", RUN, "-d", f"instrument='{CAMERA}'")
    run_pipetask(
        *("qgraph", "-b", repo, "-p", pipeline, *query, "-q", graph, "--qgraph-datastore-records"),
        paths=MODULES,
    )
    return repo, graph
