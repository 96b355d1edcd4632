"""The specification of all backends: run groups one after another in this process."""

from __future__ import annotations

__all__ = ["SerialBackend"]

import itertools
import threading
from collections.abc import Sequence

from ..outcomes import QuantumOutcome
from ..worker import GroupWork, WorkerContext, prepare_process, run_group
from ._protocol import ReportOutcome


class SerialBackend:
    """Runs every group in this process, without isolation."""

    slots = 1

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()

    def run(
        self, context: WorkerContext, batch: Sequence[Sequence[GroupWork]], report: ReportOutcome
    ) -> None:
        """Run groups one after another.  See `Backend.run`."""
        with self._lock:
            prepare_process(context)
            for work in itertools.chain.from_iterable(batch):
                for event in run_group(context, work.open()):
                    if isinstance(event, QuantumOutcome):
                        report(event)
                    if self._cancelled.is_set():
                        return

    def cancel(self) -> None:
        """Stop after the quantum that is running.  See `Backend.cancel`."""
        self._cancelled.set()
