"""Interface of the backends on which the driver runs groups.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Backend", "ReportOutcome"]

from collections.abc import Callable, Sequence
from typing import Protocol

from ..model.outcomes import QuantumOutcome
from ..model.work import UnitWork, WorkerContext

type ReportOutcome = Callable[[QuantumOutcome], None]


class Backend(Protocol):
    """Interface of backends, which run groups."""

    @property
    def slots(self) -> int:
        """Number of groups for which the scheduler keeps work submitted."""
        ...

    @property
    def present_slots(self) -> int:
        """Number of groups that can run now; less than `slots` where executors may be added."""
        ...

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        """Run units that don't depend on each other, and return when all have ended.

        Parameters
        ----------
        context
            Settings that all groups of the run share.
        batch
            Work items: either batches of groups, or one unit with several
            levels.
        report
            Function that any thread calls with each outcome as soon as it
            arrives, possibly twice with the same outcome.

        Notes
        -----
        Several threads may call this at once.  Errors of tasks don't raise; they
        are reported as outcomes.  A `~spark_butler.errors.WorkerDiskError` means
        that a disk of a worker is full; any other exception means that workers
        were lost.  After an exception, units without outcomes have to run again.
        """
        ...

    def apply[T, R](self, context: WorkerContext, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Apply a function of this package to items, and return the results in the order of the items.

        Parameters
        ----------
        function
            Function that returns expected errors instead of raising them.
        items
            Items; they and the results must be picklable.

        Notes
        -----
        Several threads may call this at once.  An exception means that workers were lost, as in `run`.
        """
        ...

    def is_alive(self) -> bool:
        """Return whether more units can be run after a call of `run` has raised."""
        ...

    def cancel(self) -> None:
        """Stop all running units; calls of `run` in progress may raise."""
        ...
