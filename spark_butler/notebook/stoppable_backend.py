"""A backend that another thread can stop, and the outcomes so far.  Runs in the driver."""

from __future__ import annotations

__all__ = ["OutcomeLog", "StoppableBackend"]

import threading
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..driver.backend import Backend, ReportOutcome
from ..errors import EngineError
from ..model.outcomes import QuantumOutcome
from ..model.work import UnitWork, WorkerContext
from ..planning.plan import Plan


class StoppableBackend:
    """A backend that another thread can stop."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._stopped = threading.Event()

    @property
    def slots(self) -> int:
        return self._backend.slots

    def __getattr__(self, name: str) -> Any:
        # What only some backends have, for the report.
        return getattr(self._backend, name)

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        self._check()
        self._backend.run(context, batch, report)

    def apply[T, R](self, context: WorkerContext, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        self._check()
        return self._backend.apply(context, function, items)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise EngineError("The run was cancelled.")

    def is_alive(self) -> bool:
        return not self._stopped.is_set() and self._backend.is_alive()

    def cancel(self) -> None:
        self._backend.cancel()

    def stop(self) -> None:
        """Cancel running jobs and refuse further work; a job that was being submitted needs another call."""
        self._stopped.set()
        self._backend.cancel()


class OutcomeLog:
    """Outcomes of a run so far; a `spark_butler.driver.events.RunObserver`."""

    def __init__(self) -> None:
        self.outcomes: dict[uuid.UUID, QuantumOutcome] = {}
        self.blocked_ids: list[uuid.UUID] = []

    def on_plan(self, plan: Plan) -> None:
        pass

    def on_dispatch(self, quantum_ids: Collection[uuid.UUID]) -> None:
        pass

    def on_outcome(self, outcome: QuantumOutcome) -> None:
        self.outcomes[outcome.quantum_id] = outcome.without_scans()

    def on_blocked(self, quantum_ids: Collection[uuid.UUID]) -> None:
        self.blocked_ids.extend(quantum_ids)
