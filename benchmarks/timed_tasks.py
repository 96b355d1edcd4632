"""Mock task that takes a given time; the workers of all engines import this module."""

from __future__ import annotations

__all__ = ["RECORD", "TimedTask"]

import os
import random
import time

from lsst.pex.config import Field
from lsst.pipe.base import QuantumContext
from lsst.pipe.base.connections import InputQuantizedConnection, OutputQuantizedConnection
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask, DynamicTestPipelineTaskConfig

RECORD = "TIMED_TASKS_RECORD"
"""Environment variable with the name of a file to which each execution adds a line: quantum and time."""


class TimedTaskConfig(DynamicTestPipelineTaskConfig):
    """Time of a quantum."""

    seconds = Field[float]("Time of a quantum, in seconds.", default=0.0)
    mixed = Field[bool](
        "Whether times are drawn from a lognormal distribution (sigma 1) with this mean.", default=False
    )


class TimedTask(DynamicTestPipelineTask):
    """Mock task that sleeps, so that more quanta than cores can run at once."""

    ConfigClass = TimedTaskConfig

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        assert butlerQC.quantum.dataId is not None
        values = ",".join(map(str, butlerQC.quantum.dataId.required_values))
        if name := os.environ.get(RECORD):
            descriptor = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{self.getName()}({values}) {time.time()}\n".encode())
            os.close(descriptor)
        seconds = self.config.seconds
        if self.config.mixed:
            seed = f"{self.getName()}{butlerQC.quantum.dataId.required_values}"
            seconds *= random.Random(seed).lognormvariate(-0.5, 1.0)
        started = time.perf_counter()
        super().runQuantum(butlerQC, inputRefs, outputRefs)
        time.sleep(max(0.0, seconds - (time.perf_counter() - started)))
