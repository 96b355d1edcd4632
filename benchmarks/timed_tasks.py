"""A mock task that takes a given time; workers and peers import this module."""

from __future__ import annotations

__all__ = ["TimedTask"]

import random
import time

from lsst.pex.config import Field
from lsst.pipe.base import QuantumContext
from lsst.pipe.base.connections import InputQuantizedConnection, OutputQuantizedConnection
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask, DynamicTestPipelineTaskConfig


class TimedTaskConfig(DynamicTestPipelineTaskConfig):
    """How long it takes."""

    seconds = Field[float]("Time of a quantum, in seconds.", default=0.0)
    mixed = Field[bool](
        "Whether times are drawn from a lognormal distribution (sigma 1) with this mean.", default=False
    )


class TimedTask(DynamicTestPipelineTask):
    """A mock task that sleeps, as a task does that is given its own core elsewhere."""

    ConfigClass = TimedTaskConfig

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        seconds = self.config.seconds
        if self.config.mixed:
            assert butlerQC.quantum.dataId is not None
            seed = f"{self.getName()}{butlerQC.quantum.dataId.required_values}"
            seconds *= random.Random(seed).lognormvariate(-0.5, 1.0)
        started = time.perf_counter()
        super().runQuantum(butlerQC, inputRefs, outputRefs)
        time.sleep(max(0.0, seconds - (time.perf_counter() - started)))
