#!/usr/bin/env python3
"""Benchmark of a run of 500 quanta on a cluster to which machines are added and from which they are removed.

Quanta sleep, so that this machine can run more executors than it has cores.
Efficiency is the number of quanta times the time of one quantum, divided by the sum
of the executors' lifetimes while quanta ran.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from mock_graphs import MODULES, RUN, prepare_graph
from timed_tasks import RECORD

from spark_butler.demo.s3server import EmbeddedS3
from tests.support.clusters import Cluster, stop_tree

_SIZE = 500
# Clouds announce the end of a spot machine about this time ahead.
_NOTICE = 120.0
_TEMPORARY = ("cleaned", "calibrated", "sources")
_SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "512m",
    "spark.executor.cores": "1",
    "spark.executor.memory": "512m",
    "spark.ui.enabled": "false",
    "spark.pyspark.python": sys.executable,
    # As if executors were on different hosts: the files of a lost executor can't be read.
    "spark.shuffle.readHostLocalDisk": "false",
}
_ELASTIC = {
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.initialExecutors": "2",
    "spark.dynamicAllocation.maxExecutors": "4",
    "spark.dynamicAllocation.executorIdleTimeout": "60s",
    "spark.decommission.enabled": "true",
    "spark.storage.decommission.enabled": "true",
    "spark.storage.decommission.shuffleBlocks.enabled": "true",
}
# Shares of finished quanta, and the event that each triggers.
_EVENTS = ((0.15, "join"), (0.3, "join"), (0.45, "leave"), (0.6, "leave"), (0.75, "join"))
_WAYS = {
    "steady": (3, (), {}),
    "with notice": (2, _EVENTS, _ELASTIC),
    "without notice": (2, _EVENTS, {**_ELASTIC, "spark.decommission.enabled": "false"}),
}


class _Machines:
    """Machines of a cluster, which are added and removed during a run."""

    def __init__(self, cluster: Cluster, *, notice: bool):
        self._cluster = cluster
        self._notice = notice
        self._later: list[tuple[float, Callable[[], None]]] = []

    def happen(self, event: str) -> None:
        """Add a machine, or remove the oldest one."""
        if event == "join":
            self._cluster.add_worker()
            return
        # Machines that were told to leave stay in the list until their notice has passed.
        worker = self._cluster.workers[len(self._later)]
        if self._notice:
            psutil.Process(worker.pid).send_signal(signal.SIGPWR)
        self._later.append(
            (time.monotonic() + _NOTICE * self._notice, lambda: self._cluster.remove_worker(worker))
        )

    def tick(self) -> None:
        """Remove the machines whose notice has passed."""
        for each in [each for each in self._later if each[0] <= time.monotonic()]:
            self._later.remove(each)
            each[1]()


def _measure(folder: Path, server: EmbeddedS3, way: str, seconds: float) -> dict[str, float]:
    """Run the graph once, and return its figures."""
    n_workers, events, settings = _WAYS[way]
    folder.mkdir()
    bucket = f"elastic-{way.replace(' ', '-')}"
    server.make_bucket(bucket)
    repo, graph = prepare_graph(folder / "graph", f"s3://{bucket}/repo", _SIZE, seconds=seconds)
    path = os.pathsep.join(map(str, MODULES))
    variables = {"PYTHONPATH": path, "SPARK_WORKER_OPTS": "-Dspark.decommission.enabled=true"}
    (folder / "cluster").mkdir()
    (folder / "conf").mkdir()
    record = folder / "record"
    record.touch()
    # Spark drops all shuffle files of the host of a lost worker, so each worker needs a host of its own.
    with Cluster.start(
        folder / "cluster", n_workers=n_workers, memory="1g", environment=variables, several_hosts=True
    ) as cluster:
        conf = {
            **_SETTINGS,
            **settings,
            "spark.master": cluster.address,
            f"spark.executorEnv.{RECORD}": record,
        }
        lines = [f"{name} {value}\n" for name, value in conf.items()]
        (folder / "conf" / "spark-defaults.conf").write_text("".join(lines))
        command = [Path(sys.executable).with_name("spark-butler"), "run", "-b", repo, "-g", graph]
        command += ["--output-run", RUN, "--register-dataset-types", "--group-by", "fused"]
        command += itertools.chain.from_iterable(("--temporary", name) for name in _TEMPORARY)
        environment = {**os.environ, "PYTHONPATH": path, "SPARK_CONF_DIR": str(folder / "conf")}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
            try:
                there = _watch(
                    process, record, _Machines(cluster, notice=way == "with notice"), cluster, events
                )
            finally:
                stop_tree(process)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    executions = [line.split() for line in record.read_text().splitlines()]
    counts = Counter(name for name, _ in executions)
    began, ended = min(float(word[1]) for word in executions), max(float(word[1]) for word in executions)
    slots = sum(n * step for at, n, step in there if began <= at <= ended)
    return {
        "quanta": len(counts),
        "wall": ended - began + seconds,
        "executors": slots / (ended - began),
        "fewest": min(n for at, n, _ in there if began <= at <= ended),
        "most": max(n for at, n, _ in there if began <= at <= ended),
        "efficiency": len(counts) * seconds / slots,
        "again": len(executions) - len(counts),
    }


def _watch(
    process: subprocess.Popen[bytes],
    record: Path,
    machines: _Machines,
    cluster: Cluster,
    events: Sequence[tuple[float, str]],
) -> list[tuple[float, int, float]]:
    """Trigger events until the command ends; return times, numbers of executors, and time steps."""
    todo, there, last = list(events), [], time.time()
    n_quanta = 507
    while process.poll() is None:
        time.sleep(0.5)
        machines.tick()
        now = time.time()
        there.append((now, len(cluster.executors), now - last))
        last = now
        done = len({line.split()[0] for line in record.read_text().splitlines()})
        if todo and done >= todo[0][0] * n_quanta:
            machines.happen(todo.pop(0)[1])
    return there


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="time of each quantum (default: 1.5)")
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS), help="what to measure")
    arguments = parser.parse_args()
    sys.stdout.write("| machines | executors: mean (fewest–most) | wall s | efficiency | executed again |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    with (
        tempfile.TemporaryDirectory(prefix="spark-butler-bench-") as name,
        EmbeddedS3() as server,
        server.activated(),
    ):
        for way in arguments.ways:
            each = _measure(Path(name) / way.replace(" ", "-"), server, way, arguments.seconds)
            executors = f"{each['executors']:.1f} ({each['fewest']}–{each['most']})"
            sys.stdout.write(
                f"| {way} | {executors} | {each['wall']:.0f} | {each['efficiency']:.0%} | "
                f"{each['again']} of {each['quanta']} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
