"""Records of runs that never were."""

from __future__ import annotations

__all__ = ["COMMAND", "make_record", "make_run"]

import datetime
import itertools
import random
import uuid
from collections.abc import Sequence

from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import QuantumReport

from spark_butler.driver.events import ObserverGroup
from spark_butler.model.outcomes import FailureKind, ImportTime, QuantumOutcome, Traffic
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch
from spark_butler.report import RunInfo, RunRecord

COMMAND = ("spark-butler", "run", "-b", "s3-repo", "-p", "drp.yaml", "-o", "u/me/first", "-d", "visit > 40")

_TRACEBACK = """Traceback (most recent call last):
  File "lsst/pipe/tasks/calibrate.py", line 312, in run
    fit = self.astrometry.run(matches, wcs)
ValueError: only 3 matches within 2 arcsec & <1 mag; at least 10 are needed
"""


def make_run(slots: int = 8, started: datetime.datetime | None = None) -> RunInfo:
    """Describe a run."""
    return RunInfo(
        "u/me/first/20260101T000000Z",
        "s3://survey/repo",
        slots=slots,
        command=COMMAND,
        options={"group_by": "auto", "temporary": ["auto"], "where": "visit > 40"},
        platform={"driver": "head", "spark": "4.3.0", "master": "spark://head:7077"},
        phases={"quantum graph": 12.3, "Spark session": 9.8, "output run": 0.7},
        started=started or datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    )


def make_record(
    n_visits: int,
    labels: Sequence[str] = ("isr", "characterizeImage", "calibrate"),
    *,
    n_hosts: int = 2,
    slots: int = 4,
    n_failed: int = 0,
    n_retried: int = 0,
    seed: int = 1,
    ago: float = 0.0,
) -> RunRecord:
    """Make the record of a run of one quantum of each task for each visit, on some hosts.

    The first visits fail in the last task, others are tried again in the first.
    It began some seconds ago.
    """
    draw = random.Random(seed)
    ids = {(n, label): uuid.UUID(int=draw.getrandbits(128)) for n in range(n_visits) for label in labels}
    names = {quantum_id: label for (_, label), quantum_id in ids.items()}
    edges = [(ids[n, a], ids[n, b]) for n in range(n_visits) for a, b in itertools.pairwise(labels)]
    record = RunRecord()
    observer = ObserverGroup(record)
    observer.on_plan(cut_graph(GraphSketch(names, edges), group_by="fused", slots=slots))
    record.began -= ago
    free = [[record.began] * slots for _ in range(n_hosts)]
    for n in range(n_visits):
        host = min(range(n_hosts), key=lambda host: min(free[host]))
        slot = min(range(slots), key=lambda slot: free[host][slot])
        now = free[host][slot] + draw.uniform(0.01, 0.2)
        observer.on_dispatch([ids[n, label] for label in labels])
        for position, label in enumerate(labels):
            seconds = draw.lognormvariate(0.4 * position, 0.5)
            worker = f"node{host + 1}:{1000 + n}"
            attempts: tuple[QuantumOutcome, ...] = ()
            if position == 0 and n_failed <= n < n_failed + n_retried:
                attempts = (
                    QuantumOutcome(
                        ids[n, label],
                        QuantumAttemptStatus.ABORTED,
                        QuantumReport(dataId={}, taskLabel=label, exitCode=-9, quantumId=ids[n, label]),
                        kind=FailureKind.LOST,
                        reason="killed by signal 9 (Killed), from outside; peak memory 512 MiB",
                        peak_memory=512 * 2**20,
                        wall_seconds=seconds / 2,
                        worker=f"node{host + 1}:{900 + n}",
                        started=now,
                    ),
                )
                now += seconds / 2
            is_bad = n < n_failed and position == len(labels) - 1
            observer.on_outcome(
                QuantumOutcome(
                    ids[n, label],
                    QuantumAttemptStatus.FAILED if is_bad else QuantumAttemptStatus.SUCCESSFUL,
                    QuantumReport(
                        dataId={"instrument": "SimCam", "detector": n % 4, "visit": 40 + n // 4},
                        taskLabel=label,
                        exitCode=int(is_bad),
                        quantumId=ids[n, label],
                    ),
                    kind=FailureKind.TASK if is_bad else None,
                    reason=f"ValueError: only {n} matches; <10> are needed" if is_bad else "",
                    traceback=_TRACEBACK if is_bad else "",
                    attempts=attempts,
                    started=now,
                    wall_seconds=seconds,
                    cpu_seconds=0.8 * seconds,
                    read_seconds=None if is_bad else 0.2 * seconds,
                    write_seconds=None if is_bad else 0.1 * seconds,
                    pack_seconds=0.001,
                    shuffle_seconds=0.02,
                    # Each worker reports what its executor has imported.
                    imports=(ImportTime(f"node{host + 1}:9", record.began - 2.5, 4.0),)
                    if not position
                    else (),
                    peak_memory=int(4e8 * draw.lognormvariate(0.3 * position, 0.2)),
                    worker=worker,
                    traffic=Traffic({"GET": 3, "PUT": 4}, 2_000_000, 9_000_000),
                )
            )
            now += seconds
        free[host][slot] = now
    return record
