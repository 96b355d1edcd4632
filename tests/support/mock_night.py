"""A repository with visits, detectors and mock inputs, for graphs of mock tasks of any size."""

from __future__ import annotations

__all__ = ["CAMERA", "fill_mock_night", "insert_dimensions", "insert_visits", "task_text"]

from collections.abc import Sequence
from pathlib import Path

from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.pipe.base.tests.mocks import DirectButlerRepo
from lsst.sphgeom import Angle, Circle, UnitVector3d

CAMERA = "Cam1"
"""Name of the instrument."""

_TASK = """
  {label}:
    class: {task_class}
    config:
      python: |
        from lsst.pipe.base.tests.mocks import DynamicConnectionConfig as C
        config.dimensions = {dimensions}
"""


def task_text(label: str, task_class: str, dimensions: Sequence[str], *lines: str) -> str:
    """Write a task of a pipeline file.

    Parameters
    ----------
    label
        Its label.
    task_class
        Name of its class.
    dimensions
        Its dimensions.
    *lines
        Further lines of Python for its configuration, in which ``C`` makes a
        connection.
    """
    head = _TASK.format(label=label, task_class=task_class, dimensions=list(dimensions))
    return head + "".join(f"        {line}\n" for line in lines)


def insert_dimensions(
    butler: Butler, visits: Sequence[int] = (1, 2), detectors: Sequence[int] = (1, 2)
) -> None:
    """Register a camera that looks at the pole, and its visits.

    Parameters
    ----------
    butler
        Butler of the repository.
    visits
        IDs of the visits.
    detectors
        IDs of the detectors.
    """
    camera = {"instrument": CAMERA}
    insert = butler.registry.insertDimensionData
    insert("instrument", {"name": CAMERA, "class_name": "lsst.pipe.base.Instrument", "visit_system": 0})
    insert("physical_filter", {**camera, "name": f"{CAMERA}-G", "band": "g"})
    insert("day_obs", {**camera, "id": 20250101})
    insert("detector", *[{**camera, "id": n, "full_name": f"D{n}"} for n in detectors])
    insert_visits(butler, visits, detectors)


def insert_visits(butler: Butler, visits: Sequence[int], detectors: Sequence[int]) -> None:
    """Register further visits of the camera.

    Parameters
    ----------
    butler
        Butler of the repository.
    visits
        IDs of the visits.
    detectors
        IDs of the detectors, which are registered.
    """
    camera = {"instrument": CAMERA}
    insert = butler.registry.insertDimensionData
    region = Circle(UnitVector3d(0.0, 0.0, 1.0), Angle(0.01))
    insert(
        "visit",
        *[
            {**camera, "id": n, "name": f"v{n}", "physical_filter": f"{CAMERA}-G", "day_obs": 20250101}
            | {"region": region}
            for n in visits
        ],
    )
    insert(
        "visit_detector_region",
        *[{**camera, "visit": v, "detector": d, "region": region} for v in visits for d in detectors],
    )


def fill_mock_night(
    repo: Path, pipeline: Path, *, visits: int, detectors: int, inputs: Sequence[str] = ()
) -> None:
    """Register visits of a camera, and make the mock inputs of a pipeline.

    Parameters
    ----------
    repo
        The repository.
    pipeline
        File of the pipeline.
    visits
        Number of visits.
    detectors
        Number of detectors.
    inputs
        Names of the dataset types that the pipeline reads; they go to the
        collection ``inputs``.
    """
    with Butler.from_config(repo, writeable=True) as butler:
        insert_dimensions(butler, range(1, visits + 1), range(1, detectors + 1))
        mock = DirectButlerRepo(butler, input_run="inputs/run", input_chain="inputs")
        mock.pipeline_graph = Pipeline.from_uri(pipeline).to_graph()
        mock.pipeline_graph.resolve(butler.registry)
        for name in inputs:
            butler.registry.registerDatasetType(mock.pipeline_graph.dataset_types[name].dataset_type)
            mock.insert_datasets(name, register=False)
