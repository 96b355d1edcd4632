"""Plan of a run: groups, units and stages of a quantum graph.  Plain data, built and used in the driver."""

from __future__ import annotations

__all__ = ["Crossing", "GraphSketch", "Group", "GroupBy", "Handover", "Plan", "Unit"]

import dataclasses
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from ..text import format_bytes, format_count

type GroupBy = Literal["auto", "fused", "quantum"] | tuple[str, ...]
"""Rule by which quanta share a group: a grain, or the names of dimensions."""


@dataclasses.dataclass(frozen=True, slots=True)
class Handover:
    """A temporary dataset with its producer and its consumers."""

    dataset_id: uuid.UUID
    dataset_type: str
    producer: uuid.UUID
    consumers: tuple[uuid.UUID, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class GraphSketch:
    """Extract of a quantum graph for planning."""

    task_labels: Mapping[uuid.UUID, str]
    """Task label of every quantum.  Plans keep this order where edges permit it."""

    edges: Iterable[tuple[uuid.UUID, uuid.UUID]]
    """Pairs of quanta; the second depends on the first."""

    handovers: Sequence[Handover] = ()
    temporary_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of temporary dataset types, with the reason why each is temporary."""

    data_ids: Mapping[uuid.UUID, Mapping[str, int | str]] = dataclasses.field(default_factory=dict)
    """Data IDs of the quanta, needed only to group by dimensions."""

    sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Mean size of the datasets of a type in bytes, by name, where known."""

    costs: Mapping[uuid.UUID, float] = dataclasses.field(default_factory=dict)
    """Expected time of each quantum, in any unit, where known; 1 for others."""

    dimensions: Collection[frozenset[str]] = ()
    """Names of the dimensions of each task, including tasks whose quanta have all been done."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Quanta that one worker runs in order; the smallest piece that Spark schedules."""

    index: int
    quanta: tuple[uuid.UUID, ...]
    """The quanta, each after its dependencies in the group."""

    upstream: frozenset[int]
    """Groups that must end before this one may start."""

    stage: int
    """Number of groups on the longest path to this group."""

    remaining: float
    """Greatest cost of a path from this group to the end of the graph; a quantum of unknown cost counts 1."""

    unit: int
    """The unit that the group belongs to."""

    level: int
    """Number of groups of the same unit on the longest path to this group."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """Groups that pass temporaries to each other, run as one Spark job.

    A group that neither receives nor sends temporaries is a unit of its own.
    """

    index: int
    levels: tuple[tuple[int, ...], ...]
    """Its groups, by level; temporaries pass from each level to later ones."""

    upstream: frozenset[int]
    """Groups of other units that must end before this unit may start."""

    remaining: float
    """Greatest cost of a path from this unit to the end of the graph; a quantum of unknown cost counts 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Crossing:
    """A temporary dataset that travels from one group to others."""

    dataset_id: uuid.UUID
    dataset_type: str
    producer: int
    """Index of the group that writes it."""

    consumers: tuple[int, ...]
    """Indices of the groups that read it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The result of partitioning a quantum graph: groups, units and transfers.

    Examples
    --------
    >>> plan = butler.plan(pipeline, output="u/me/plan", where="visit = 202601010101")
    >>> len(plan), len(plan.groups), len(plan.stages)
    (2, 2, 1)
    >>> print(plan.explain())
    Plan: 2 quanta in 2 groups and 1 stage.
    ...
    """

    groups: tuple[Group, ...]
    """All groups, each after its dependencies."""

    units: tuple[Unit, ...]
    """All units, each after its dependencies."""

    crossings: tuple[Crossing, ...]
    """Temporaries that travel between groups."""

    task_labels: Mapping[uuid.UUID, str]
    temporary_types: Mapping[str, str]
    """Names of temporary dataset types, with the reason why each is temporary."""

    sizes: Mapping[str, float]
    """Mean size of the datasets of a type in bytes, by name, where known."""

    grain: str
    """The grain of the partition, with its reason."""

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
        """Return a description of the plan for a person.

        It has totals, the groups of each stage by kind, the temporary dataset types with the reasons, and the
        temporaries that cross stages.
        """
        stages = self.stages
        lines = [
            f"Plan: {format_count(len(self), 'quantum', 'quanta')} in "
            f"{format_count(len(self.groups), 'group')} and {format_count(len(stages), 'stage')}.",
            f"Grain: {self.grain}.",
        ]
        for number, groups in enumerate(stages):
            lines.append(f"  stage {number}: {format_count(len(groups), 'group')}")
            for kind, n_groups in _kinds(self, groups):
                lines.append(f"    {n_groups} x [{kind}]")
        return "\n".join([*lines, *_explain_temporaries(self)])

    def describe(self) -> dict[str, Any]:
        """Return a description of the plan for programs, for `json.dumps`."""
        return {
            "quanta": len(self),
            "groups": len(self.groups),
            "grain": self.grain,
            "stages": [
                {
                    "groups": len(groups),
                    "kinds": [{"tasks": kind, "groups": n_groups} for kind, n_groups in _kinds(self, groups)],
                }
                for groups in self.stages
            ],
            "temporaries": dict(self.temporary_types),
            "crossings": [
                {
                    "dataset_type": route.dataset_type,
                    "from_stage": route.start,
                    "to_stage": route.end,
                    "datasets": route.datasets,
                    "to_groups": route.groups,
                    "deliveries": route.copies,
                    "bytes": None
                    if (size := self.sizes.get(route.dataset_type)) is None
                    else round(size * route.copies),
                }
                for route in _routes(self)
            ],
            "shuffles": _count_shuffles(self),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class _Route:
    """The temporaries of one dataset type that pass from one stage to another."""

    dataset_type: str
    start: int
    end: int
    datasets: int
    groups: int
    copies: int


def _routes(plan: Plan) -> list[_Route]:
    """Return datasets, receiving groups and copies by dataset type and pair of stages."""
    datasets: Counter[tuple[str, int, int]] = Counter()
    copies: Counter[tuple[str, int, int]] = Counter()
    groups: dict[tuple[str, int, int], set[int]] = {}
    for crossing in plan.crossings:
        start = plan.groups[crossing.producer].stage
        for end in {plan.groups[n].stage for n in crossing.consumers}:
            key = crossing.dataset_type, start, end
            receivers = [n for n in crossing.consumers if plan.groups[n].stage == end]
            datasets[key] += 1
            copies[key] += len(receivers)
            groups.setdefault(key, set()).update(receivers)
    return [_Route(*key, datasets[key], len(groups[key]), copies[key]) for key in sorted(datasets)]


def _count_shuffles(plan: Plan) -> int:
    return sum(len(unit.levels) > 1 for unit in plan.units)


def _explain_temporaries(plan: Plan) -> list[str]:
    """Return lines about the temporary dataset types, and those that cross between groups."""
    if not plan.temporary_types:
        return ["Temporary dataset types: none; everything is stored."]
    lines = ["Temporary dataset types (never in the repository):"]
    width = max(map(len, plan.temporary_types))
    for name, reason in plan.temporary_types.items():
        lines.append(f"  {name:<{width}}  {reason}")
    if not (routes := _routes(plan)):
        return [*lines, "All of them pass in memory inside a group; nothing crosses between stages."]
    jobs = format_count(_count_shuffles(plan), "Spark job")
    lines.append(f"Crossing between stages, in {jobs} with a shuffle:")
    for route in routes:
        size = plan.sizes.get(route.dataset_type)
        volume = "size unknown" if size is None else f"about {format_bytes(size * route.copies)}"
        datasets = format_count(route.datasets, "dataset")
        copies = format_count(route.copies, "copy", "copies")
        in_copies = "" if route.copies == route.datasets else f" in {copies}"
        lines.append(
            f"  {route.dataset_type:<{width}}  stage {route.start} -> {route.end}: "
            f"{datasets} to {format_count(route.groups, 'group')}{in_copies}, {volume}"
        )
    return lines


def _kinds(plan: Plan, groups: Iterable[Group]) -> list[tuple[str, int]]:
    """Return the numbers of groups by their tasks, the most frequent first."""
    kinds: Counter[str] = Counter()
    for group in groups:
        labels = Counter(plan.task_labels[quantum] for quantum in group.quanta)
        kinds[" -> ".join(f"{label} x {n}" if n > 1 else label for label, n in labels.items())] += 1
    return sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
