#!/usr/bin/env python3
"""The engine in a session that is up: it runs one graph to get warm, and measures another."""

from __future__ import annotations

__all__: list[str] = []

import json
import sys
import time
from collections.abc import Sequence

import psutil
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.utils.threads import disable_implicit_threading

from spark_butler.backends.spark import SparkBackend
from spark_butler.config import RunOptions
from spark_butler.engine import execute_graph
from spark_butler.session import check_workers, make_session


def main(arguments: Sequence[str]) -> None:
    """Run two graphs, and print what the second has cost."""
    disable_implicit_threading()
    session = make_session("local[2]", conf={"spark.ui.enabled": "false"})
    try:
        check_workers(session)
        backend = SparkBackend(session)
        for repo, file in zip(arguments[::2], arguments[1::2], strict=True):
            result = _run(backend, repo, file)
        sys.stdout.write(f"RESULT {json.dumps(result)}\n")
    finally:
        session.stop()


def _run(backend: SparkBackend, repo: str, file: str) -> dict[str, float]:
    with PredictedQuantumGraph.open(file) as reader:
        reader.read_execution_quanta()
        graph = reader.finish()
    with Butler.from_config(repo, writeable=True) as butler:
        graph.pipeline_graph.register_dataset_types(butler)
        butler.collections.register(graph.header.output_run)
        wall, cpu, driver = time.perf_counter(), _cpu_of_all(), time.process_time()
        result = execute_graph(graph, butler, backend, RunOptions())
        return {
            "quanta": len(graph),
            "failed": len(result.failed),
            "wall": time.perf_counter() - wall,
            "cpu": _cpu_of_all() - cpu,
            "driver cpu": time.process_time() - driver,
            "slots": backend.slots,
            "compute": sum(outcome.wall_seconds for outcome in result.outcomes.values()),
        }


def _cpu_of_all() -> float:
    """Processor time of this process and all below it, those included that have ended, in seconds."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in (this, *this.children(recursive=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
