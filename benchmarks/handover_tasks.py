"""Tasks that write and read large datasets, and record the time of each put and get."""

from __future__ import annotations

__all__ = ["MakeConfig", "MakeTask", "ReadConfig", "ReadTask", "count_requests"]

import dataclasses
import functools
import os
import resource
import time
from typing import Any

import astropy.table
import astropy.units as u
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as connection_types
import numpy as np
from astro_metadata_translator import ObservationInfo
from botocore import handlers
from lsst.images import (
    Box,
    DetectorFrame,
    Image,
    Mask,
    MaskPlane,
    MaskSchema,
    ObservationSummaryStats,
    VisitImage,
)
from lsst.images.psfs import GaussianPointSpreadFunction
from lsst.images.tests import make_random_sky_projection
from lsst.pex.config import Field

from spark_butler.demo.simulation import make_simcam
from spark_butler.tasks.frames import make_detector

REQUESTS = "BENCHMARK_REQUESTS"
"""Environment variable with the name of a file to which each request to the object store adds a line."""


def count_requests(request: Any, **kwargs: Any) -> None:
    """Record a request to the object store; a handler of botocore's event ``before-send``."""
    if path := os.environ.get(REQUESTS):
        length = request.headers.get("Content-Length", 0)
        with open(path, "a") as stream:
            stream.write(f"{request.method} {int(length)}\n")


if ("before-send.s3", count_requests) not in handlers.BUILTIN_HANDLERS:
    handlers.BUILTIN_HANDLERS.append(("before-send.s3", count_requests))


@functools.lru_cache(maxsize=1)
def _make_sky(size: int) -> Any:
    box = Box.factory[0:size, 0:size]
    frame = DetectorFrame(instrument="Cam1", visit=1, detector=1, bbox=box)
    return make_random_sky_projection(np.random.default_rng(1), frame, box)


def make_visit_image(size: int, seed: int) -> VisitImage:
    """Make a calibrated image of noise, with mask and variance: 9 bytes per pixel."""
    rng = np.random.default_rng(seed)
    box = Box.factory[0:size, 0:size]
    schema = MaskSchema([MaskPlane("BAD", "Bad."), MaskPlane("SAT", "Saturated.")])
    mask = Mask(0, schema=schema, bbox=box)
    mask.set("BAD", rng.random((size, size)) < 0.001)
    return VisitImage(
        Image(
            rng.standard_normal((size, size), dtype=np.float32),
            bbox=box,
            unit=u.nJy,
            sky_projection=_make_sky(size),
        ),
        mask=mask,
        variance=Image(np.full((size, size), 1.0, dtype=np.float32), bbox=box, unit=u.nJy**2),
        obs_info=ObservationInfo(instrument="SimCam", physical_filter="sim_r", exposure_time=30.0 * u.s),
        summary_stats=ObservationSummaryStats(psfSigma=1.7),
        psf=GaussianPointSpreadFunction(1.7, bounds=box, stamp_size=21),
        detector=make_detector(make_simcam(), 0, visit=1),
        band="r",
    )


def make_table(rows: int, seed: int) -> astropy.table.Table:
    """Make a catalog of ``rows`` rows and 20 columns."""
    rng = np.random.default_rng(seed)
    table = astropy.table.Table({f"flux{n}": rng.standard_normal(rows) for n in range(17)})
    table["id"] = np.arange(rows)
    table["flag"] = rng.random(rows) < 0.1
    table["flux0"].unit = u.nJy
    return table


class MakeConnections(pipe_base.PipelineTaskConnections, dimensions=("instrument", "detector")):
    """One dataset for each detector."""

    output = connection_types.Output("handed_over", "VisitImage", dimensions=("instrument", "detector"))

    def __init__(self, *, config: MakeConfig):
        self.output = dataclasses.replace(self.output, storageClass=config.storage_class)


class MakeConfig(pipe_base.PipelineTaskConfig, pipelineConnections=MakeConnections):
    """Kind and size of the datasets."""

    storage_class = Field[str](doc="VisitImage or ArrowAstropy.", default="VisitImage")
    size = Field[int](doc="Side of the image in pixels, or number of rows.", default=1024)


class MakeTask(pipe_base.PipelineTask):
    """Make a dataset and put it."""

    ConfigClass = MakeConfig
    _DefaultName = "make"

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        config = self.config
        cpu = time.process_time()
        make = make_visit_image if config.storage_class == "VisitImage" else make_table
        dataset = make(config.size, butlerQC.quantum.dataId["detector"])
        self.metadata["make_cpu"] = time.process_time() - cpu
        start, cpu = time.perf_counter(), time.process_time()
        butlerQC.put(dataset, outputRefs.output)
        self.metadata["put_wall"] = time.perf_counter() - start
        self.metadata["put_cpu"] = time.process_time() - cpu


class ReadConnections(pipe_base.PipelineTaskConnections, dimensions=("instrument", "detector")):
    """Input: the dataset of a detector.  Output: a number."""

    input = connection_types.Input("handed_over", "VisitImage", dimensions=("instrument", "detector"))
    output = connection_types.Output("number", "StructuredDataDict", dimensions=("instrument", "detector"))

    def __init__(self, *, config: ReadConfig):
        self.input = dataclasses.replace(self.input, storageClass=config.storage_class)
        self.output = dataclasses.replace(self.output, name=f"number_{config.copy}")


class ReadConfig(pipe_base.PipelineTaskConfig, pipelineConnections=ReadConnections):
    """Kind of the datasets, and the number of this reader."""

    storage_class = Field[str](doc="VisitImage or ArrowAstropy.", default="VisitImage")
    copy = Field[int](doc="Number of this reader.", default=0)


class ReadTask(pipe_base.PipelineTask):
    """Get a dataset and sum it up."""

    ConfigClass = ReadConfig
    _DefaultName = "read"

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        dataset = butlerQC.get(inputRefs.input)
        self.metadata["get_wall"] = time.perf_counter() - start
        self.metadata["get_cpu"] = time.process_time() - cpu
        cpu = time.process_time()
        array = dataset.image.array if isinstance(dataset, VisitImage) else dataset["flux1"]
        total = float(np.sum(array, dtype=np.float64))
        self.metadata["make_cpu"] = time.process_time() - cpu
        self.metadata["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        butlerQC.put({"sum": total}, outputRefs.output)
