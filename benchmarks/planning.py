#!/usr/bin/env python3
"""Benchmark of the driver on large graphs: time and memory to plan them and to schedule their quanta.

Planner and scheduler are the engine's own, and quanta take no time.  Work items are
neither built nor sent, and there is no registry; `make bench-engines` measures
these.  Each size is measured in a separate process.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import psutil
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import QuantumReport
from workloads import make_frames

from spark_butler.driver.backend import ReportOutcome
from spark_butler.driver.scheduler import Scheduler
from spark_butler.model.outcomes import QuantumOutcome
from spark_butler.planning.plan import Unit

_DETECTORS = 104


class _Nowhere:
    """Backend whose quanta succeed at once."""

    slots = 200

    def __init__(self, labels: dict[Any, str]):
        self._labels = labels
        self._reports = {
            label: QuantumReport(dataId={}, taskLabel=label, exitCode=0) for label in set(labels.values())
        }

    def run(self, context: object, batch: Sequence[Any], report: ReportOutcome) -> None:
        for quanta in batch:
            for quantum in quanta:
                told = self._reports[self._labels[quantum]]
                report(QuantumOutcome(quantum, QuantumAttemptStatus.SUCCESSFUL, told, wall_seconds=0.01))

    def apply(self, *_: Any) -> list[Any]:
        raise AssertionError("no files are copied")

    def is_alive(self) -> bool:
        return True

    def cancel(self) -> None:
        pass


def _measure(visits: int) -> dict[str, float]:
    """Plan and schedule one graph."""
    workload = make_frames(visits=visits, detectors=_DETECTORS)
    xgraph = workload.xgraph
    before = psutil.Process().memory_info().rss
    started = time.process_time()
    plan = workload.cut("fused")
    planned = time.process_time()
    after_planning = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    n_done = 0

    def count(_: QuantumOutcome) -> None:
        nonlocal n_done
        n_done += 1

    def make_work(units: Sequence[Unit], *_: object) -> Any:
        return [q for unit in units for level in unit.levels for g in level for q in plan.groups[g].quanta]

    backend = _Nowhere(dict(plan.task_labels))
    dispatcher = Scheduler(plan, cast(Any, xgraph), backend, make_work, on_outcome=count)
    dispatcher.run(cast(Any, None))
    ended = time.process_time()
    if n_done != len(workload):
        raise RuntimeError(f"{n_done} of {len(workload)} quanta were done.")
    return {
        "quanta": len(workload),
        "edges": len(workload.edges),
        "plan": planned - started,
        "plan memory": after_planning - before,
        "dispatch": ended - planned,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
    }


def main() -> None:
    """Measure all sizes, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--visits", type=int, nargs="+", default=[32, 320, 3200], help="sizes: visits of 104 detectors"
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(_measure(arguments.one)))
        return
    sys.stdout.write(
        "| quanta | edges | planning, CPU s | planning, MB in addition to the graph "
        "| scheduling, CPU ms per quantum | MB at the end |\n|---|---|---|---|---|---|\n"
    )
    for visits in arguments.visits:
        command = [sys.executable, Path(__file__).resolve(), "--one", str(visits)]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        sys.stdout.write(
            f"| {row['quanta']:,} | {row['edges']:,} | {row['plan']:.2f} | {row['plan memory'] / 1e6:.0f} "
            f"| {1000 * row['dispatch'] / row['quanta']:.3f} | {row['memory'] / 1e6:.0f} |\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"\nLoad average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores.\n")


if __name__ == "__main__":
    main()
