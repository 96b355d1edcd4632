"""A task in a module that starts a thread when it is imported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask, DynamicTestPipelineTaskConfig

POOL = ThreadPoolExecutor(1)
POOL.submit(int).result()


class ThreadedTask(DynamicTestPipelineTask):
    """Waits for the thread, which it never gets in a process that was forked after the import."""

    ConfigClass = DynamicTestPipelineTaskConfig

    def runQuantum(self, *args: Any) -> None:
        POOL.submit(int).result()
        super().runQuantum(*args)
