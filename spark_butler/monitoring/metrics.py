"""Metrics of a run for Prometheus: an HTTP endpoint to scrape, and a file for a node exporter.

Runs in the driver.  Needs the package ``prometheus-client`` (extra ``metrics``).
"""

from __future__ import annotations

__all__ = ["RunMetrics", "publish_metrics"]

import contextlib
import logging
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..errors import OptionsError
from ..model.outcomes import QuantumOutcome
from ..report.progress import STATES, ProgressSnapshot
from ..report.reporter import Ticker
from ..text import best_effort

if TYPE_CHECKING:
    from ..planning.plan import Plan

logger = logging.getLogger(__name__)

_PREFIX = "spark_butler_"
_SECONDS_BETWEEN = 10.0
_Families = Sequence[tuple[str, str, tuple[str, ...], Mapping[Any, float]]]


class RunMetrics(Collector):
    """Collector of the metrics of a run, and a `~spark_butler.driver.RunObserver`.

    The numbers of quanta come from the status of the run; all other metrics are
    sums over outcomes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run = ""
        self._snapshot: Callable[[], ProgressSnapshot] | None = None
        self._failures: Counter[tuple[str, str]] = Counter()
        self._retries: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._memory: defaultdict[str, int] = defaultdict(int)
        self._submitted = 0
        self._lag: Callable[[], float] = float

    def attach(self, run: str, snapshot: Callable[[], ProgressSnapshot]) -> None:
        """Start to collect the metrics of a run."""
        self._run, self._snapshot = run, snapshot

    def on_plan(self, plan: Plan) -> None:
        """Do nothing.  See `RunObserver.on_plan`."""

    def on_dispatch(self, quantum_ids: Collection[uuid.UUID]) -> None:
        with self._lock:
            self._submitted += len(quantum_ids)

    def on_ingest(self, lag: Callable[[], float]) -> None:
        """Start to publish the lag of the registry.  See `IngestObserver.on_ingest`."""
        self._lag = lag

    def on_blocked(self, quantum_ids: Collection[uuid.UUID]) -> None:
        """Do nothing; the snapshot has the blocked quanta.  See `RunObserver.on_blocked`."""

    def on_outcome(self, outcome: QuantumOutcome) -> None:
        label = outcome.label
        with self._lock:
            if not outcome.succeeded:
                self._failures[label, str(outcome.kind or "")] += 1
            for attempt in outcome.attempts:
                self._retries[label, str(attempt.kind)] += 1
            for name, number in outcome.traffic.requests.items():
                self._requests[label, name] += number
            self._bytes[label, "read"] += outcome.traffic.received
            self._bytes[label, "written"] += outcome.traffic.sent
            for attempt in (outcome, *outcome.attempts):
                self._seconds[label, "wall"] += attempt.wall_seconds
            self._seconds[label, "cpu"] += outcome.cpu_seconds
            self._memory[label] = max(self._memory[label], outcome.peak_memory)

    def collect(self) -> Iterator[Metric]:
        # Not while the lock is held: a slow reader would delay the run.
        return iter(list(self._collect()))

    def _collect(self) -> Iterator[Metric]:
        if self._snapshot is None:
            return
        snapshot = self._snapshot()
        states = {(each.label, s): getattr(each, s) for each in snapshot.tasks for s in STATES}
        pending, lag = sum(each.pending for each in snapshot.tasks), self._lag()
        by_kind = ("task", "kind")
        with self._lock:
            submitted = {(): self._submitted}
            memory = {(label,): nbytes for label, nbytes in self._memory.items()}
            gauges: _Families = (
                ("quanta", "Quanta by task and state.", ("task", "state"), states),
                ("slots", "Groups that can run at the same time.", (), {(): snapshot.slots}),
                ("busy_slots", "Slots that run a quantum.", (), {(): snapshot.busy}),
                ("queued_quanta", "Quanta that were not submitted or have not begun.", (), {(): pending}),
                (
                    "ingest_lag_seconds",
                    "Time for which the oldest output waits for the registry.",
                    (),
                    {(): lag},
                ),
                ("peak_memory_bytes", "Greatest resident memory of a quantum.", ("task",), memory),
            )
            counters: _Families = (
                ("failures", "Quanta that failed, by kind.", by_kind, self._failures),
                ("retries", "Attempts that were followed by another, by kind.", by_kind, self._retries),
                ("requests", "Requests to object stores.", ("task", "operation"), self._requests),
                ("traffic_bytes", "Bytes from and to object stores.", ("task", "direction"), self._bytes),
                ("quantum_seconds", "Time of quanta, all attempts.", ("task", "clock"), self._seconds),
                ("submitted_quanta", "Submitted quanta, repeated submissions included.", (), submitted),
            )
            for kind, families in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
                for name, text, labels, values in families:
                    family = kind(f"{_PREFIX}{name}", text, labels=("run", *labels))
                    for key, value in values.items():
                        family.add_metric((self._run, *key), value)
                    yield family


@contextlib.contextmanager
def publish_metrics(port: int | None, file: str | None) -> Iterator[RunMetrics]:
    """Serve metrics on a port, and write them to a file every 10 s and at the end.

    Port 0 means any free port.  A node exporter reads files whose names end in ``.prom``.
    """
    metrics = RunMetrics()
    registry = CollectorRegistry()
    registry.register(metrics)
    with contextlib.ExitStack() as stack:
        if port is not None:
            try:
                server, thread = start_http_server(port, registry=registry)
            except OSError as exc:
                raise OptionsError(f"--metrics-port {port} can't be used: {exc}.") from exc
            stack.callback(thread.join, 5.0)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            logger.info("Metrics are at http://%s:%d/metrics.", *server.server_address[:2])
        if file is not None:
            if not Path(file).absolute().parent.is_dir():
                raise OptionsError(f"--metrics-file {file!r} is in a folder that does not exist.")

            def write() -> None:
                with best_effort(f"The metrics can't be written to {file}"):
                    write_to_textfile(file, registry)

            stack.callback(write)
            stack.enter_context(Ticker(write, _SECONDS_BETWEEN, "metrics"))
        yield metrics
