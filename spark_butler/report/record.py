"""Facts of a run for its report: those known before it, and each outcome.  Runs in the driver."""

from __future__ import annotations

__all__ = ["RunInfo", "RunRecord", "Span"]

import dataclasses
import datetime
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..model.outcomes import QuantumOutcome

if TYPE_CHECKING:
    from ..planning.plan import Plan


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """Facts of a run that are known before its first quantum."""

    run: str
    """The output RUN collection."""

    repository: str
    """Address or alias of the repository, without secrets."""

    slots: int = 1
    """Number of groups that can run at the same time."""

    command: Sequence[str] = ()
    """The command line, if there was one, without secrets."""

    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Options by name, as values of JSON, without secrets."""

    platform: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Host, and version and address of Spark."""

    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds that the driver spent before the first quantum, by name of the step."""

    done_before: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Numbers of quanta that earlier attempts have done and that are not in the graph, by task label."""

    quanta: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Numbers of the graph's quanta by task label; those that the plan leaves out were done before, too."""

    started: datetime.datetime = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC)
    )
    """When the run began."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """An attempt that ran, for the timeline."""

    label: str
    quantum_id: uuid.UUID
    worker: str
    """Host name and process ID."""
    started: float
    """Its start, in seconds since the epoch."""
    seconds: float
    status: str
    """``done``, ``failed``, or ``retried`` when another attempt followed."""


class RunRecord:
    """Outcomes of a run, for its report; a `~spark_butler.driver.RunObserver`."""

    def __init__(self) -> None:
        self.outcomes: dict[uuid.UUID, QuantumOutcome] = {}
        """Outcome of each quantum that was tried, without datastore records."""

        self.repeated: list[QuantumOutcome] = []
        """Further outcomes, of quanta that were rerun because their temporaries were lost."""

        self.n_blocked: dict[str, int] = {}
        """Number of quanta that can't run, by task label."""

        self.totals: dict[str, int] = {}
        """Number of quanta by task label, in the order in which tasks begin."""

        self.has_temporaries = False
        """Whether some dataset types were temporary."""

        self.explanation = ""
        """The plan in words."""

        self.n_given_again = 0
        """Number of quanta that were submitted again because their worker was lost."""

        self.began = time.time()
        """When the plan was made, in seconds since the epoch."""

        self._labels: Mapping[uuid.UUID, str] = {}
        self._given: set[uuid.UUID] = set()

    def on_plan(self, plan: Plan) -> None:
        """Keep the description of the plan, and its counts."""
        self._labels = plan.task_labels
        self.explanation = plan.explain()
        self.has_temporaries = bool(plan.temporary_types)
        self.began = time.time()
        for group in plan.groups:
            for quantum_id in group.quanta:
                label = plan.task_labels[quantum_id]
                self.totals[label] = self.totals.get(label, 0) + 1

    def on_dispatch(self, quantum_ids: Collection[uuid.UUID]) -> None:
        """Count quanta that are submitted again."""
        self.n_given_again += len(self._given.intersection(quantum_ids))
        self._given.update(quantum_ids)

    def on_outcome(self, outcome: QuantumOutcome) -> None:
        """Keep an outcome without datastore records."""
        outcome = dataclasses.replace(outcome.without_scans(), records={}, outputs=(), removed=())
        if outcome.quantum_id in self.outcomes:
            self.repeated.append(outcome)
        else:
            self.outcomes[outcome.quantum_id] = outcome

    def on_blocked(self, quantum_ids: Collection[uuid.UUID]) -> None:
        """Count quanta that can't run."""
        for quantum_id in quantum_ids:
            label = self._labels[quantum_id]
            self.n_blocked[label] = self.n_blocked.get(label, 0) + 1

    def spans(self) -> Iterator[Span]:
        """Return the attempts with known times."""
        for outcome in (*self.outcomes.values(), *self.repeated):
            label, quantum_id = outcome.label, outcome.quantum_id
            last = "done" if outcome.succeeded else "failed"
            for each, status in [*((attempt, "retried") for attempt in outcome.attempts), (outcome, last)]:
                if each.started:
                    yield Span(label, quantum_id, each.worker, each.started, each.wall_seconds, status)
