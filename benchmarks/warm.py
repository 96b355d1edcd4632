#!/usr/bin/env python3
"""The engine in a session that is up: it runs one graph to get warm, and measures another."""

from __future__ import annotations

__all__: list[str] = []

import json
import sys
import time
from collections.abc import Sequence

from lsst.daf.butler import Butler
from lsst.utils.threads import disable_implicit_threading
from metering import cpu_of_family
from stock import read_graph

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
    graph = read_graph(file)
    with Butler.from_config(repo, writeable=True) as butler:
        graph.pipeline_graph.register_dataset_types(butler)
        butler.collections.register(graph.header.output_run)
        wall, cpu, driver = time.perf_counter(), cpu_of_family()[0], time.process_time()
        result = execute_graph(graph, butler, backend, RunOptions())
        return {
            "quanta": len(graph),
            "failed": len(result.failed),
            "wall": time.perf_counter() - wall,
            "cpu": cpu_of_family()[0] - cpu,
            "driver cpu": time.process_time() - driver,
            "slots": backend.slots,
            "compute": sum(outcome.wall_seconds for outcome in result.outcomes.values()),
        }


if __name__ == "__main__":
    main(sys.argv[1:])
