"""Serial backend, the specification of all backends.  Runs groups one after another in the driver."""

from __future__ import annotations

__all__ = ["SerialBackend"]

import threading
import time
from collections.abc import Callable, Sequence

from ..model.outcomes import QuantumOutcome
from ..model.work import GroupWork, UnitWork, WorkerContext
from ..temporaries.shuffle import ReceiveBuffer, partition_of, receive
from ..worker.quantum_retry import run_attempts
from ..worker.state import WorkerState
from .backend import ReportOutcome


class SerialBackend:
    """A backend that runs every group in this process, without isolation and limits."""

    slots = present_slots = 1

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._state = WorkerState()

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        with self._lock:
            self._cancelled.clear()
            self._state.prepare(context)
            for unit in batch:
                if self._cancelled.is_set():
                    return
                self._run_unit(context, unit, report)

    def _run_unit(self, context: WorkerContext, unit: UnitWork, report: ReportOutcome) -> None:
        """Run a unit level by level."""
        arrived: list[tuple[GroupWork, ReceiveBuffer | None]] = [(work, None) for work in unit.groups]
        passing: list[bytes] = []
        for width in (*unit.widths[1:], 0):
            heaps: list[list[bytes]] = [[] for _ in range(width)]
            for record in passing:
                heaps[partition_of(record)].append(record)
            while arrived:
                events = run_attempts(self._state, context, *arrived.pop(0))
                for event in events:
                    if isinstance(event, QuantumOutcome):
                        report(event)
                        if self._cancelled.is_set():
                            return
                    else:
                        heaps[partition_of(event)].append(bytes(event))
            began = time.time()
            items = [item for heap in heaps for item in receive(heap)]
            if items:
                self._state.clock.record_shuffle(began)
            passing = [item for item in items if isinstance(item, bytes)]
            arrived.extend(item for item in items if not isinstance(item, bytes))

    def apply[T, R](self, context: WorkerContext, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        with self._lock:
            self._state.prepare(context)
            return [function(item) for item in items]

    def is_alive(self) -> bool:
        """Return whether more units can be run: not after the engine itself has failed."""
        return False

    def cancel(self) -> None:
        """Stop the current call of `run` after its quantum."""
        self._cancelled.set()
