#!/usr/bin/env python3
"""Benchmark of the transfer of a dataset: in memory, by shuffle, by scratch files, or as a stored dataset.

All transports run in turn in one process tree, with one real S3 server.  CPU time
is that of the driver, the JVM and all Python workers.  The time to make the datasets
and the time of the same pipeline with datasets of a few bytes are subtracted.  The
CPU time of the S3 server is a column of its own.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import handover_tasks
import psutil
from lsst.daf.butler import Butler
from lsst.pipe.base import PipelineGraph
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from metering import cpu_of_family
from pyspark import SparkContext

from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.driver import context
from spark_butler.driver.engine import execute_graph
from spark_butler.model.options import RunOptions
from spark_butler.spark.backend import SparkBackend
from spark_butler.spark.session import make_session

WAYS = ("fused", "shuffle", "scratch", "butler")
CHUNK = 8 * 2**20


class Case(NamedTuple):
    """Dataset to transfer."""

    name: str
    storage_class: str
    size: int


CASES = {
    "1k": Case("VisitImage 1k²", "VisitImage", 1024),
    "2k": Case("VisitImage 2k²", "VisitImage", 2048),
    "4k": Case("VisitImage 4k²", "VisitImage", 4096),
    "table": Case("table 200 k × 19", "ArrowAstropy", 200_000),
}
EMPTY = Case("empty", "VisitImage", 8)


class Usage(NamedTuple):
    """Resources that were used."""

    wall: float
    cpu: float
    server_cpu: float
    requests: int
    sent: int


class Figures(NamedTuple):
    """Figures of one transport of one kind of dataset, per dataset and reader."""

    cpu: float
    wall: float
    server_cpu: float
    peak: float
    requests: float
    sent: float
    get_wall: float


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="datasets to transfer")
    parser.add_argument("--datasets", type=int, default=4, help="datasets in a run")
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 4], help="readers of each dataset")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs; their median is shown")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for the table and the plot")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="spark-butler-bench-") as folder:
        requests = Path(folder, "requests")
        os.environ[handover_tasks.REQUESTS] = str(requests)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
        )
        with EmbeddedS3() as server, server.activated():
            server.make_bucket("bench")
            spark = make_session("local[2]", conf={"spark.ui.enabled": "false", "spark.local.dir": folder})
            spark.sparkContext.setLogLevel("ERROR")
            try:
                bench = Bench(Path(folder), spark.sparkContext, SparkBackend(spark), requests, arguments)
                results = bench.run()
            finally:
                spark.stop()
    write_results(results, arguments)


class Bench:
    """Benchmark with its repository, session and server."""

    def __init__(
        self,
        folder: Path,
        spark: SparkContext,
        backend: SparkBackend,
        requests: Path,
        arguments: argparse.Namespace,
    ):
        self.repo = make_repository(folder / "repo", "s3://bench/repo/")
        self.server_process = next(
            process.pid for process in psutil.Process().children(recursive=True) if "weed" in process.name()
        )
        self.spark = spark
        self.backend = backend
        self.requests = requests
        self.arguments = arguments
        self.n_runs = 0
        with Butler.from_config(self.repo, writeable=True) as butler:
            butler.collections.register("inputs")
            butler.registry.insertDimensionData("instrument", {"name": "Cam1", "detector_max": 1000})
            butler.registry.insertDimensionData(
                "detector",
                *(
                    {"instrument": "Cam1", "id": n, "full_name": f"D{n:03d}"}
                    for n in range(arguments.datasets)
                ),
            )

    def run(self) -> dict[str, Any]:
        """Run all cases with all transports."""
        results: dict[str, Any] = {"load": os.getloadavg(), "cpus": os.cpu_count(), "rows": []}
        # Warm-up runs, in which the JVM compiles its code.
        for way in WAYS * 4:
            self.hand_over(EMPTY, way, 1)
        for readers in self.arguments.readers:
            for key in self.arguments.cases:
                case = CASES[key]
                for way in WAYS:
                    figures = self.repeat(case, way, readers)
                    results["rows"].append((case.name, readers, way, figures._asdict()))
                    show(case.name, readers, way, figures)
                nbytes = serialized_bytes(case)
                raw = self.shuffle_raw(nbytes, readers)
                results["rows"].append((case.name, readers, "plain PySpark", raw._asdict()))
                show(case.name, readers, "plain PySpark", raw)
        results["load after"] = os.getloadavg()
        return results

    def repeat(self, case: Case, way: str, readers: int) -> Figures:
        """Return the median difference between transfers of a case and transfers of empty datasets."""
        runs = []
        for _ in range(self.arguments.repeats):
            idle = self.hand_over(EMPTY, way, readers)
            runs.append(subtract(self.hand_over(case, way, readers), idle))
        return Figures(*(statistics.median(column) for column in zip(*runs, strict=True)))

    def hand_over(self, case: Case, way: str, readers: int) -> Figures:
        """Run a pipeline of a maker and some readers."""
        self.n_runs += 1
        run = f"run{self.n_runs}"
        pipeline = PipelineGraph()
        config = handover_tasks.MakeConfig()
        config.storage_class, config.size = case.storage_class, case.size
        config.connections.output = f"handed_over_{case.storage_class}"
        pipeline.add_task("make", handover_tasks.MakeTask, config)
        for n in range(readers):
            read = handover_tasks.ReadConfig()
            read.storage_class, read.copy = case.storage_class, n
            read.connections.input = f"handed_over_{case.storage_class}"
            pipeline.add_task(f"read{n}", handover_tasks.ReadTask, read)
        options = RunOptions(
            temporary=() if way == "butler" else ("handed_over*",),
            group_by="fused" if way == "fused" else "quantum",
        )
        with Butler.from_config(self.repo, writeable=True, run=run) as butler:
            builder = AllDimensionsQuantumGraphBuilder(
                pipeline, butler, input_collections=["inputs"], output_run=run
            )
            graph = builder.finish(attach_datastore_records=False).assemble()
            graph.pipeline_graph.register_dataset_types(butler)
            graph.init_output_run(butler)
            with self.measure() as usage, shuffle_limit(1 if way == "scratch" else context.MAX_SHUFFLE_BYTES):
                result = execute_graph(graph, butler, self.backend, options)
            assert not result.failed, [outcome.traceback for outcome in result.failed]
            metadata = [
                butler.get(ref)[label]
                for label in pipeline.tasks
                for ref in butler.query_datasets(f"{label}_metadata", collections=run)
            ]
            butler.removeRuns([run])
        used = usage()
        made = sum(item["make_cpu"] for item in metadata)
        count = self.arguments.datasets * readers
        return Figures(
            cpu=(used.cpu - made) / count,
            wall=used.wall / count,
            server_cpu=used.server_cpu / count,
            peak=max(item["peak"] for item in metadata if "peak" in item),
            requests=used.requests / count,
            sent=used.sent / count,
            get_wall=statistics.median(item["get_wall"] for item in metadata if "get_wall" in item),
        )

    def shuffle_raw(self, nbytes: int, readers: int) -> Figures:
        """Shuffle as many raw bytes with plain PySpark, in chunks."""
        datasets = self.arguments.datasets
        chunks = [CHUNK] * (nbytes // CHUNK) + [nbytes % CHUNK]
        runs = []
        for _ in range(self.arguments.repeats):
            with self.measure() as usage:
                made = self.spark.accumulator(0.0)

                def make(n: int, made: Any = made) -> Iterator[tuple[int, bytes]]:
                    for reader in range(readers):
                        for size in chunks:
                            start = time.process_time()
                            data = os.urandom(1024) * (size // 1024)
                            made.add(time.process_time() - start)
                            yield n * readers + reader, data

                pairs = self.spark.parallelize(range(datasets), datasets).flatMap(make)
                arrived = pairs.partitionBy(datasets * readers)
                arrived.foreachPartition(lambda items: sum(len(item[1]) for item in items))
            used = usage()
            count = datasets * readers
            runs.append(
                Figures((used.cpu - made.value) / count, used.wall / count, 0.0, math.nan, 0.0, 0.0, math.nan)
            )
        return Figures(*(statistics.median(column) for column in zip(*runs, strict=True)))

    @contextmanager
    def measure(self) -> Iterator[Callable[[], Usage]]:
        """Measure what happens inside the context."""
        self.requests.write_text("")
        wall, before = time.perf_counter(), cpu_of_family(self.server_process)
        found: list[Usage] = []
        yield lambda: found[0]
        after = cpu_of_family(self.server_process)
        lines = [line.split() for line in self.requests.read_text().splitlines()]
        found.append(
            Usage(
                time.perf_counter() - wall,
                after[0] - before[0],
                after[1] - before[1],
                len(lines),
                sum(int(length) for _, length in lines),
            )
        )


@contextmanager
def shuffle_limit(nbytes: int) -> Iterator[None]:
    """Make temporaries of at least this length bypass the shuffle while the context lasts."""
    before, context.MAX_SHUFFLE_BYTES = context.MAX_SHUFFLE_BYTES, nbytes
    try:
        yield
    finally:
        context.MAX_SHUFFLE_BYTES = before


def serialized_bytes(case: Case) -> int:
    """Return the length of the serialized form of a dataset."""
    from lsst.daf.butler import StorageClassFactory

    from spark_butler.codecs import encode

    make = (
        handover_tasks.make_visit_image if case.storage_class == "VisitImage" else handover_tasks.make_table
    )
    return encode(make(case.size, 0), StorageClassFactory().getStorageClass(case.storage_class)).nbytes


def subtract(figures: Figures, idle: Figures) -> Figures:
    """Subtract the costs of the engine that don't depend on the dataset."""
    return figures._replace(cpu=figures.cpu - idle.cpu, wall=figures.wall - idle.wall)


def show(name: str, readers: int, way: str, figures: Figures) -> None:
    """Print a row of the table."""
    sys.stdout.write(format_row(name, readers, way, figures) + "\n")
    sys.stdout.flush()


def format_row(name: str, readers: int, way: str, figures: Figures) -> str:
    """Return a row of the table."""
    peak = "" if math.isnan(figures.peak) else f"{figures.peak / 1e6:.0f}"
    get = "" if math.isnan(figures.get_wall) else f"{1000 * figures.get_wall:.2f}"
    return (
        f"| {name} | {readers} | {way} | {figures.cpu:.3f} | {figures.server_cpu:.3f} | {figures.wall:.3f} "
        f"| {get} | {peak} | {figures.requests:.1f} | {figures.sent / 1e6:.1f} |"
    )


def write_results(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the table and the plot."""
    arguments.output.mkdir(exist_ok=True)
    head = [
        "| dataset | readers | way | CPU s | S3 server CPU s | wall s | get ms | peak MB | requests "
        "| MB to the store |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [format_row(name, n, way, Figures(**figures)) for name, n, way, figures in results["rows"]]
    loads = " → ".join(" ".join(f"{value:.1f}" for value in results[key]) for key in ("load", "load after"))
    note = (
        f"{results['cpus']} cores, local[2], Python {sys.version.split()[0]}; medians of {arguments.repeats} "
        f"runs of {arguments.datasets} datasets; load averages before and after: {loads}. "
        f"`python benchmarks/temporaries.py --repeats {arguments.repeats} --datasets {arguments.datasets}`"
    )
    (arguments.output / "temporaries-benchmark.md").write_text("\n".join([*head, *rows, "", note, ""]))
    (arguments.output / "temporaries-benchmark.json").write_text(json.dumps(results, indent=1))
    draw(results["rows"], arguments.output / "temporaries-benchmark.png")


def draw(rows: Sequence[tuple[str, int, str, dict[str, float]]], path: Path) -> None:
    """Draw CPU time by dataset and transport."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({readers for _, readers, _, _ in rows})
    names = list(dict.fromkeys(name for name, *_ in rows))
    ways = list(dict.fromkeys(way for _, _, way, _ in rows))
    figure, axes = plt.subplots(1, len(counts), figsize=(5.5 * len(counts), 4), sharey=True, squeeze=False)
    for axis, readers in zip(axes[0], counts, strict=True):
        for n, way in enumerate(ways):
            values = [
                next(f["cpu"] for a, r, w, f in rows if (a, r, w) == (name, readers, way)) for name in names
            ]
            # Differences below zero are noise, and can't be shown on a logarithmic scale.
            values = [value if value > 0 else math.nan for value in values]
            axis.bar([x + 0.16 * (n - 2) for x in range(len(names))], values, 0.15, label=way)
        axis.set_xticks(range(len(names)), names)
        axis.set_yscale("log")
        axis.set_title(f"{readers} reader{'s' if readers > 1 else ''} of each dataset")
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("CPU s per dataset and reader")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(ways), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
