"""Core-hours and GB-hours of tasks, and their price.  Runs in the driver and in commands that show runs."""

from __future__ import annotations

__all__ = ["format_runs", "format_usage", "measure_usage", "predict_usage", "price_usage", "read_price"]

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import networkx

from ..errors import OptionsError
from ..model.outcomes import QuantumOutcome
from ..repository.task_history import Times, find_costs, find_task_means
from ..text import align_rows, format_seconds

type Price = tuple[float, float]
"""Money for a core-hour and for a GB-hour."""

_HOUR = 3600.0
_GB = 1e9
_DIGITS = 6


def read_price(text: str) -> Price:
    """Read the value of ``--price``; it is refused unless it is two numbers."""
    try:
        core, memory = (float(part) for part in text.split(","))
        if core >= 0 and memory >= 0:
            return core, memory
    except ValueError:
        pass
    raise OptionsError(
        f"--price is {text!r}; expected money for a core-hour and for a GB-hour, such as 0.04,0.005."
    )


def measure_usage(outcomes: Iterable[QuantumOutcome], cores: int) -> dict[str, float]:
    """Return the ``core_hours`` of all attempts at quanta, and the ``gb_hours`` of their resident memory."""
    seconds = gb_seconds = 0.0
    for outcome in outcomes:
        if outcome.skipped_existing:
            continue
        for attempt in (outcome, *outcome.attempts):
            seconds += attempt.wall_seconds
            gb_seconds += attempt.wall_seconds * attempt.peak_memory / _GB
    return _usage(cores * seconds, gb_seconds)


def _usage(core_seconds: float, gb_seconds: float) -> dict[str, float]:
    return {
        "core_hours": round(core_seconds / _HOUR, _DIGITS),
        "gb_hours": round(gb_seconds / _HOUR, _DIGITS),
    }


def predict_usage(
    xgraph: networkx.DiGraph[uuid.UUID], times: Times, peaks: Mapping[str, float], cores: int
) -> list[dict[str, Any]]:
    """Predict ``core_hours`` and ``gb_hours`` of each task of a plan from earlier runs; `None` without any.

    ``peaks`` has the mean peak memory of a quantum of each task, in bytes; each quantum may
    use ``cores`` cores.
    """
    quanta: defaultdict[str, list[uuid.UUID]] = defaultdict(list)
    for quantum_id in networkx.topological_sort(xgraph):
        quanta[xgraph.nodes[quantum_id]["task_label"]].append(quantum_id)
    means = find_task_means(times)
    tasks: list[dict[str, Any]] = []
    for label, members in quanta.items():
        task: dict[str, Any] = {"label": label, "quanta": len(members), "core_hours": None, "gb_hours": None}
        if label in means:
            costs = find_costs(xgraph.subgraph(members), times)
            # Without any, none of these data IDs ran before, but others did.
            seconds = sum(costs.values()) if costs else means[label] * len(members)
            task |= _usage(cores * seconds, seconds * peaks.get(label, 0.0) / _GB)
            if label not in peaks:
                task["gb_hours"] = None
        tasks.append(task)
    return tasks


def price_usage(task: Mapping[str, Any], price: Price) -> float | None:
    """Return the money for a task's usage; `None` where a part of that is unknown."""
    core_hours, gb_hours = task.get("core_hours"), task.get("gb_hours")
    if core_hours is None or gb_hours is None:
        return None
    return round(float(core_hours * price[0] + gb_hours * price[1]), _DIGITS)


def format_usage(tasks: Sequence[Mapping[str, Any]], price: Price | None = None) -> str:
    """Return a table of the usage of tasks, with their sums."""
    rows: list[tuple[str, ...]] = [("task", "quanta", *_heading(price))]
    rows += [(task["label"], f"{task['quanta']:,}", *_cells(task, price)) for task in tasks]
    total: dict[str, Any] = {}
    for name in ("core_hours", "gb_hours"):
        values = [task.get(name) for task in tasks]
        total[name] = None if None in values else sum(value or 0.0 for value in values)
    rows.append(("total", f"{sum(task['quanta'] for task in tasks):,}", *_cells(total, price)))
    return "\n".join(align_rows(rows))


def format_runs(contents: Iterable[Mapping[str, Any]], price: Price | None = None) -> str:
    """Return a table of several runs, given the contents of ``report.json``, with a row for each task."""
    rows: list[tuple[str, ...]] = [
        ("run", "state", "task", "quanta", "done", "failed", "blocked", "median", *_heading(price))
    ]
    for content in contents:
        for task in content["tasks"]:
            counts = (f"{task[name]:,}" for name in ("quanta", "done", "failed", "blocked"))
            median = format_seconds(task["seconds"]["median"]) if task["seconds"] else "-"
            head = (content["run"], content["state"], task["label"])
            rows.append((*head, *counts, median, *_cells(task, price)))
    return "\n".join(align_rows(rows))


def _heading(price: Price | None) -> tuple[str, ...]:
    return ("core-hours", "GB-hours", *(["price"] if price else []))


def _cells(task: Mapping[str, Any], price: Price | None) -> list[str]:
    values = [task.get("core_hours"), task.get("gb_hours"), *([price_usage(task, price)] if price else [])]
    return ["?" if value is None else f"{value:.4g}" for value in values]
