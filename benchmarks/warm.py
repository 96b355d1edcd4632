#!/usr/bin/env python3
"""Benchmark of the engine in a running session: it runs one graph to warm up, and measures another."""

from __future__ import annotations

__all__: list[str] = []

import argparse
import json
import os
import sys
import time

from lsst.daf.butler import Butler
from lsst.utils.threads import disable_implicit_threading
from metering import cpu_of_family

from spark_butler.driver.engine import execute_graph
from spark_butler.model.options import RunOptions
from spark_butler.spark.backend import SparkBackend
from spark_butler.spark.preflight import check_workers
from spark_butler.spark.session import make_spark_context
from tests.support.stock import read_graph


def main() -> None:
    """Run graphs, and print the wall and processor time of the last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", nargs="+", help="repositories and graphs in turn")
    parser.add_argument(
        "--temporary", nargs="*", default=[], help="temporary dataset types of the last graph"
    )
    arguments = parser.parse_args()
    disable_implicit_threading()
    # As `spark-butler run` does.
    os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
    context = make_spark_context("local[2]", conf={"spark.ui.enabled": "false"})
    try:
        check_workers(context)
        backend = SparkBackend(context)
        pairs = list(zip(arguments.places[::2], arguments.places[1::2], strict=True))
        for repo, file in pairs[:-1]:
            _run(backend, repo, file, RunOptions())
        result = _run(backend, *pairs[-1], RunOptions(temporary=tuple(arguments.temporary)))
        sys.stdout.write(f"RESULT {json.dumps(result)}\n")
    finally:
        context.stop()


def _run(backend: SparkBackend, repo: str, file: str, options: RunOptions) -> dict[str, float]:
    graph = read_graph(file)
    with Butler.from_config(repo, writeable=True) as butler:
        graph.pipeline_graph.register_dataset_types(butler)
        butler.collections.register(graph.header.output_run)
        graph.write_init_outputs(butler, skip_existing=True)
        wall, cpu, driver = time.perf_counter(), cpu_of_family()[0], time.process_time()
        result = execute_graph(graph, butler, backend, options)
        return {
            "quanta": len(graph),
            "failed": len(result.failed),
            "wall": time.perf_counter() - wall,
            "cpu": cpu_of_family()[0] - cpu,
            "driver cpu": time.process_time() - driver,
            "slots": backend.slots,
        }


if __name__ == "__main__":
    main()
