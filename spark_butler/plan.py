"""Cut a quantum graph into groups that workers run and stages that explain them.

Everything here is pure: no lsst I/O, no Spark.  All algorithms are linear in
the number of quanta plus edges.
"""

from __future__ import annotations

__all__ = ["GraphSketch", "Group", "Handover", "Plan", "cut_graph"]

import dataclasses
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from .errors import PlanError

type Grain = Literal["fused", "quantum"]


@dataclasses.dataclass(frozen=True, slots=True)
class Handover:
    """A temporary dataset: who makes it and who reads it."""

    dataset_id: uuid.UUID
    """ID of the dataset."""

    dataset_type: str
    """Name of its dataset type."""

    producer: uuid.UUID
    """Quantum that makes it."""

    consumers: tuple[uuid.UUID, ...]
    """Quanta that read it."""


@dataclasses.dataclass(frozen=True, slots=True)
class GraphSketch:
    """The part of a quantum graph that planning needs."""

    task_labels: Mapping[uuid.UUID, str]
    """Task label of every quantum.  The order is kept where the graph leaves a choice."""

    edges: Sequence[tuple[uuid.UUID, uuid.UUID]]
    """Pairs of quanta of which the second needs the first."""

    handovers: Sequence[Handover] = ()
    """Temporary datasets."""

    temporary_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of temporary dataset types, with the reason why each is temporary."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Quanta that one worker runs in order."""

    index: int
    """Position of the group in its plan."""

    stage: int
    """Number of groups on the longest path that leads here."""

    quanta: tuple[uuid.UUID, ...]
    """The quanta, each after those of the same group that it needs."""

    upstream: frozenset[int]
    """Groups that must end before this one may start."""

    remaining: int
    """Number of quanta on the longest path from the start of this group to the end of the graph."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The frozen result of cutting a quantum graph."""

    groups: tuple[Group, ...]
    """All groups, each after those it needs."""

    task_labels: Mapping[uuid.UUID, str]
    """Task label of every quantum."""

    temporary_types: Mapping[str, str]
    """Names of temporary dataset types, with the reason why each is temporary."""

    grain: str
    """How the graph was cut."""

    def __len__(self) -> int:
        return len(self.task_labels)

    @property
    def stages(self) -> tuple[tuple[Group, ...], ...]:
        """Groups by stage; there are no edges between groups of one stage."""
        stages: defaultdict[int, list[Group]] = defaultdict(list)
        for group in self.groups:
            stages[group.stage].append(group)
        return tuple(tuple(stages[n]) for n in range(len(stages)))

    def explain(self) -> str:
        """Describe the plan for a person.

        Returns
        -------
        text
            A few lines: totals, then a row for each stage and kind of group.
        """
        stages = self.stages
        lines = [
            f"Plan: {len(self)} quanta in {len(self.groups)} groups and {len(stages)} stages "
            f"({self._grain_reason()})."
        ]
        for number, groups in enumerate(stages):
            kinds = Counter(tuple(self.task_labels[q] for q in group.quanta) for group in groups)
            lines.append(f"  stage {number}: {len(groups)} groups")
            for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])):
                lines.append(f"    {count} x [{_chain_text(kind)}]")
        if self.temporary_types:
            lines.append("Temporary dataset types (in memory only, never in the repository):")
            width = max(map(len, self.temporary_types))
            for name, reason in sorted(self.temporary_types.items()):
                lines.append(f"  {name:<{width}}  {reason}")
        else:
            lines.append("Temporary dataset types: none; everything is retained.")
        return "\n".join(lines)

    def _grain_reason(self) -> str:
        if self.grain == "quantum":
            return "every quantum is a group of its own"
        return "quanta joined by narrow edges share a group"


def _chain_text(labels: Sequence[str]) -> str:
    """Write a sequence of task labels, repeated ones counted."""
    counts = Counter(labels)
    return " -> ".join(f"{label} x {n}" if n > 1 else label for label, n in counts.items())


def cut_graph(sketch: GraphSketch, *, grain: Grain = "fused") -> Plan:
    """Cut a quantum graph into groups.

    With the grain ``fused``, a quantum joins the group of the quanta that it
    needs when all of those are in one group and none of them feeds another
    quantum of the same task; where quanta gather or fan out, a new group
    begins.  Each group then has a single first quantum, the only one with
    needs outside, so that no cycle between groups can arise.

    Parameters
    ----------
    sketch
        The graph.
    grain
        ``quantum`` makes every quantum a group of its own.

    Returns
    -------
    plan
        The groups, in an order in which they could run one after another.

    Raises
    ------
    PlanError
        Raised if the graph has a cycle, or if a temporary dataset would have
        to travel from one group to another.
    """
    successors: defaultdict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    predecessors: defaultdict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    fan_out: Counter[tuple[uuid.UUID, str]] = Counter()
    for before, after in dict.fromkeys(sketch.edges):
        successors[before].append(after)
        predecessors[after].append(before)
        fan_out[before, sketch.task_labels[after]] += 1
    order = _sort_topologically(sketch.task_labels, successors, predecessors)
    group_of: dict[uuid.UUID, int] = {}
    members: list[list[uuid.UUID]] = []
    for quantum in order:
        home = _narrow_home(quantum, sketch.task_labels, fan_out, predecessors, group_of)
        if home is None or grain == "quantum":
            group_of[quantum] = len(members)
            members.append([quantum])
        else:
            group_of[quantum] = home
            members[home].append(quantum)
    _check_handovers(sketch, group_of)
    return Plan(
        groups=_make_groups(members, group_of, order, successors, predecessors),
        task_labels=sketch.task_labels,
        temporary_types=dict(sketch.temporary_types),
        grain=grain,
    )


def _sort_topologically(
    quanta: Iterable[uuid.UUID],
    successors: Mapping[uuid.UUID, Sequence[uuid.UUID]],
    predecessors: Mapping[uuid.UUID, Sequence[uuid.UUID]],
) -> list[uuid.UUID]:
    """Order quanta so that each follows those it needs (Kahn's algorithm)."""
    quanta = list(quanta)
    missing = {q: len(predecessors.get(q, ())) for q in quanta}
    order = [q for q in quanta if not missing[q]]
    for quantum in order:
        for after in successors.get(quantum, ()):
            missing[after] -= 1
            if not missing[after]:
                order.append(after)
    if len(order) != len(quanta):
        raise PlanError(
            f"The quantum graph has a dependency cycle: {len(quanta) - len(order)} of {len(quanta)} quanta "
            "wait for each other."
        )
    return order


def _narrow_home(
    quantum: uuid.UUID,
    labels: Mapping[uuid.UUID, str],
    fan_out: Mapping[tuple[uuid.UUID, str], int],
    predecessors: Mapping[uuid.UUID, Sequence[uuid.UUID]],
    group_of: Mapping[uuid.UUID, int],
) -> int | None:
    """Find the group that a quantum can join, if only narrow edges lead to it."""
    needs = predecessors.get(quantum, ())
    homes = {group_of[q] for q in needs}
    if len(homes) != 1:
        return None
    label = labels[quantum]
    if any(fan_out[need, label] > 1 for need in needs):
        return None
    return homes.pop()


def _check_handovers(sketch: GraphSketch, group_of: Mapping[uuid.UUID, int]) -> None:
    """Refuse temporaries that would have to leave their group."""
    crossing: Counter[tuple[str, str, str]] = Counter()
    for handover in sketch.handovers:
        home = group_of[handover.producer]
        for consumer in handover.consumers:
            if group_of[consumer] != home:
                ends = sketch.task_labels[handover.producer], sketch.task_labels[consumer]
                crossing[handover.dataset_type, *ends] += 1
    if crossing:
        (name, maker, reader), count = crossing.most_common(1)[0]
        raise PlanError(
            f"Dataset type {name!r} can't be temporary: {count} of its datasets pass from task {maker!r} "
            f"to task {reader!r} between stages, which is not there yet. Retain it, or leave one of the "
            "tasks out."
        )


def _make_groups(
    members: Sequence[Sequence[uuid.UUID]],
    group_of: Mapping[uuid.UUID, int],
    order: Sequence[uuid.UUID],
    successors: Mapping[uuid.UUID, Sequence[uuid.UUID]],
    predecessors: Mapping[uuid.UUID, Sequence[uuid.UUID]],
) -> tuple[Group, ...]:
    """Work out the edges, stage and remaining path of each group."""
    path: dict[uuid.UUID, int] = {}
    for quantum in reversed(order):
        path[quantum] = 1 + max((path[after] for after in successors.get(quantum, ())), default=0)
    groups: list[Group] = []
    for index, quanta in enumerate(members):
        upstream = {group_of[need] for quantum in quanta for need in predecessors.get(quantum, ())}
        upstream.discard(index)
        groups.append(
            Group(
                index=index,
                stage=1 + max((groups[n].stage for n in upstream), default=-1),
                quanta=tuple(quanta),
                upstream=frozenset(upstream),
                remaining=max(path[quantum] for quantum in quanta),
            )
        )
    return tuple(groups)
