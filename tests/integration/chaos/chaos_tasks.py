"""Mock tasks that leave word of each of their executions; workers import this module too."""

from __future__ import annotations

__all__ = ["MAX_SHUFFLE_BYTES", "RecordingTask"]

import os

from lsst.pipe.base import QuantumContext
from lsst.pipe.base.connections import InputQuantizedConnection, OutputQuantizedConnection
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask

MAX_SHUFFLE_BYTES = "CHAOS_MAX_SHUFFLE_BYTES"
"""Environment variable with the size of a temporary from which on it goes to the object store."""

if _limit := os.environ.get(MAX_SHUFFLE_BYTES):
    # In the driver, which imports the tasks before it makes the context of the workers.
    from spark_butler.driver import context

    context.MAX_SHUFFLE_BYTES = int(_limit)


class RecordingTask(DynamicTestPipelineTask):
    """A mock task that appends a line to the file that ``CHAOS_RECORD`` names."""

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        if name := os.environ.get("CHAOS_RECORD"):
            assert butlerQC.quantum.dataId is not None
            values = ",".join(map(str, butlerQC.quantum.dataId.required_values))
            descriptor = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{self.getName()}({values})\n".encode())
            os.close(descriptor)
        super().runQuantum(butlerQC, inputRefs, outputRefs)
