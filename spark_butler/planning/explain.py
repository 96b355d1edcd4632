"""Descriptions of a plan for people and for programs.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["describe_plan", "explain_plan"]

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..text import count, human_bytes
from .plan import Group, Plan


def explain_plan(plan: Plan) -> str:
    """Return a description of a plan for a person.

    Parameters
    ----------
    plan
        The plan.
    """
    stages = plan.stages
    lines = [
        f"Plan: {count(len(plan), 'quantum', 'quanta')} in {count(len(plan.groups), 'group')} "
        f"and {count(len(stages), 'stage')}.",
        f"Grain: {plan.grain}.",
    ]
    for number, groups in enumerate(stages):
        lines.append(f"  stage {number}: {count(len(groups), 'group')}")
        for kind, n_groups in _kinds(plan, groups):
            lines.append(f"    {n_groups} x [{kind}]")
    return "\n".join([*lines, *_explain_temporaries(plan)])


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return a description of a plan for a program.

    Parameters
    ----------
    plan
        The plan.

    Returns
    -------
    description
        The content of `explain_plan`, as `json.dumps` takes it; ``None``
        stands for a volume that isn't known.
    """
    return {
        "quanta": len(plan),
        "groups": len(plan.groups),
        "grain": plan.grain,
        "stages": [
            {
                "groups": len(groups),
                "kinds": [{"tasks": kind, "groups": n_groups} for kind, n_groups in _kinds(plan, groups)],
            }
            for groups in plan.stages
        ],
        "temporaries": dict(plan.temporary_types),
        "crossings": [
            {
                "dataset_type": route.dataset_type,
                "from_stage": route.start,
                "to_stage": route.end,
                "datasets": route.datasets,
                "to_groups": route.groups,
                "deliveries": route.copies,
                "bytes": None
                if (size := plan.sizes.get(route.dataset_type)) is None
                else round(size * route.copies),
            }
            for route in _routes(plan)
        ],
        "shuffles": _count_shuffles(plan),
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
    """Count datasets, receiving groups and copies by dataset type and pair of stages."""
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
    """Describe the temporary dataset types, and those that cross between groups."""
    if not plan.temporary_types:
        return ["Temporary dataset types: none; everything is stored."]
    lines = ["Temporary dataset types (never in the repository):"]
    width = max(map(len, plan.temporary_types))
    for name, reason in plan.temporary_types.items():
        lines.append(f"  {name:<{width}}  {reason}")
    if not (routes := _routes(plan)):
        return [*lines, "All of them pass in memory inside a group; nothing crosses between stages."]
    jobs = count(_count_shuffles(plan), "Spark job")
    lines.append(f"Crossing between stages, in {jobs} with a shuffle:")
    for route in routes:
        size = plan.sizes.get(route.dataset_type)
        volume = "size unknown" if size is None else f"about {human_bytes(size * route.copies)}"
        copies = "" if route.copies == route.datasets else f" in {count(route.copies, 'copy', 'copies')}"
        lines.append(
            f"  {route.dataset_type:<{width}}  stage {route.start} -> {route.end}: "
            f"{count(route.datasets, 'dataset')} to {count(route.groups, 'group')}{copies}, {volume}"
        )
    return lines


def _kinds(plan: Plan, groups: Iterable[Group]) -> list[tuple[str, int]]:
    """Count groups by the tasks in them, the most frequent first."""
    kinds = Counter(_chain_text([plan.task_labels[q] for q in group.quanta]) for group in groups)
    return sorted(kinds.items(), key=lambda item: (-item[1], item[0]))


def _chain_text(labels: Sequence[str]) -> str:
    """Write a sequence of task labels, repeated ones counted."""
    return " -> ".join(f"{label} x {n}" if n > 1 else label for label, n in Counter(labels).items())
