"""A pytest plugin that puts `SparkGraphExecutor` in the place of pipe_base's multiprocess executor.

With ``SPARK_PLUG=all`` in the environment a single process, too, means Spark,
so that every quantum of the tests runs there.
"""

from __future__ import annotations

import os
from typing import Any

import lsst.pipe.base.mp_graph_executor as patched

from spark_butler.executor import SparkGraphExecutor


class EverythingOnSpark(SparkGraphExecutor):
    """Leaves the number of processes to Spark where one was asked for."""

    def __init__(self, *, num_proc: int | None = None, **kwargs: Any):
        super().__init__(num_proc=None if num_proc == 1 else num_proc, **kwargs)


_EXECUTOR = EverythingOnSpark if os.environ.get("SPARK_PLUG") == "all" else SparkGraphExecutor
_counts = {"executed": 0}
_execute = SparkGraphExecutor._run


def _run(self: SparkGraphExecutor, *args: Any) -> Any:
    _counts["executed"] += 1
    return _execute(self, *args)


patched.MPGraphExecutor = _EXECUTOR  # type: ignore[misc]
SparkGraphExecutor._run = _run  # type: ignore[method-assign]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many graphs ran on Spark, so that a patch that misses its place is seen."""
    terminalreporter.write_line(f"graphs executed on Spark: {_counts['executed']}")
