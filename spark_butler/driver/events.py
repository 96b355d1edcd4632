"""Protocol of the observers of a run, and a group that calls several observers.  Runs in the driver."""

from __future__ import annotations

__all__ = ["IngestObserver", "ObserverGroup", "RunObserver"]

import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..model.outcomes import QuantumOutcome
from ..text import best_effort

if TYPE_CHECKING:
    from ..planning.plan import Plan


class RunObserver(Protocol):
    """An observer of a run.  The thread that drives the run calls it."""

    def on_plan(self, plan: Plan) -> None:
        """Receive the plan of the quanta that run, once."""
        ...

    def on_dispatch(self, quantum_ids: Collection[uuid.UUID]) -> None:
        """Receive the quanta of a submitted job; quanta of a lost worker are submitted again."""
        ...

    def on_outcome(self, outcome: QuantumOutcome) -> None:
        """Receive an outcome; a second one if a quantum is rerun after its temporary was lost."""
        ...

    def on_blocked(self, quantum_ids: Collection[uuid.UUID]) -> None:
        """Receive the quanta that can't run because one that they need failed."""
        ...


@runtime_checkable
class IngestObserver(Protocol):
    """An observer that also shows how far the registry lags behind the datastore."""

    def on_ingest(self, lag: Callable[[], float]) -> None:
        """Receive, once, a function that any thread may call.

        It returns for how many seconds the oldest dataset waits to be registered.
        """
        ...


class ObserverGroup:
    """Group that calls several observers, but `None`; one that raises is not called again."""

    def __init__(self, *observers: RunObserver | None):
        self._observers = [observer for observer in observers if observer is not None]

    def on_plan(self, plan: Plan) -> None:
        self._notify(lambda observer: observer.on_plan(plan))

    def on_dispatch(self, quantum_ids: Collection[uuid.UUID]) -> None:
        self._notify(lambda observer: observer.on_dispatch(quantum_ids))

    def on_outcome(self, outcome: QuantumOutcome) -> None:
        self._notify(lambda observer: observer.on_outcome(outcome))

    def on_blocked(self, quantum_ids: Collection[uuid.UUID]) -> None:
        self._notify(lambda observer: observer.on_blocked(quantum_ids))

    def on_ingest(self, lag: Callable[[], float]) -> None:
        for observer in self._observers:
            if isinstance(observer, IngestObserver):
                observer.on_ingest(lag)

    def _notify(self, call: Callable[[RunObserver], None]) -> None:
        kept = []
        for observer in self._observers:
            with best_effort(f"{type(observer).__name__} no longer observes the run"):
                call(observer)
                kept.append(observer)
        self._observers = kept
