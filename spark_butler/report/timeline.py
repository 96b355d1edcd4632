"""Timeline of a run: attempts by slot, and the parts of its time.  Runs in the driver when a run ends."""

from __future__ import annotations

__all__ = ["Lane", "busy_slots", "make_lanes", "round_shares", "split_time"]

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..model.outcomes import QuantumOutcome
from .record import RunInfo, RunRecord, Span

# In which the driver waits for Spark.
_SESSION_PHASE = "Spark session"
_SAME = 1e-3


@dataclasses.dataclass(slots=True)
class Lane:
    """The attempts that one slot of a host ran, in order of time; slots of a host are numbered from 1."""

    host: str
    number: int
    spans: list[Span]
    until: float = 0.0
    """End of the last attempt, in seconds since the epoch."""


def make_lanes(spans: Iterable[Span]) -> list[Lane]:
    """Return the attempts on as few lanes for each host as hold them without overlap.

    A process is not a lane: the quanta of each group may run in one of its own.
    """
    by_host: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_host[span.worker.rpartition(":")[0] or "?"].append(span)
    lanes: list[Lane] = []
    for host, found in sorted(by_host.items()):
        own: list[Lane] = []
        for span in sorted(found, key=lambda span: span.started):
            lane = next((lane for lane in own if lane.until <= span.started + _SAME), None)
            if lane is None:
                lane = Lane(host, len(own) + 1, [])
                own.append(lane)
            lane.spans.append(span)
            lane.until = span.started + span.seconds
        lanes += own
    return lanes


def busy_slots(
    spans: Iterable[Span], labels: Sequence[str], start: float, end: float, n_bins: int
) -> list[list[float]]:
    """Return how many attempts ran at the same time, as the mean in each bin of time, for each label."""
    edges = np.linspace(start, end, n_bins + 1)
    width = (end - start) / n_bins or 1.0
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in labels}
    for span in spans:
        if span.label in times:
            times[span.label].append((span.started, span.seconds))
    rows = []
    for each in times.values():
        began, seconds = np.array(each).reshape(-1, 2).T
        # The slot seconds from the start to each edge.
        used = [np.clip(edge - began, 0.0, seconds).sum() for edge in edges]
        rows.append((np.diff(used) / width).round(3).tolist())
    return rows


def split_time(run: RunInfo, record: RunRecord, spans: Sequence[Span], end: float) -> dict[str, Any]:
    """Split the wall time of a run until ``end``, and the time of its slots, into parts.

    The parts of ``driver`` add up to the wall time.  Those of ``slots`` other than
    ``available`` and ``between_quanta`` add up to ``available``; to more where more was
    measured, as where slots came later.  ``shares`` add up to 1.
    """
    seconds = end - record.began
    available = run.slots * seconds
    outcomes = [*record.outcomes.values(), *record.repeated]
    read, compute, write, pack = _split_quanta(record.outcomes.values())
    at_work = sum(span.seconds for span in spans)
    shuffle = sum(outcome.shuffle_seconds for outcome in outcomes)
    imported = {
        (each.process, each.began): each.began + each.seconds
        for outcome in outcomes
        for each in outcome.imports
    }
    importing = _sum_within(imported.items(), record.began, end)
    # Without Spark, this phase is only the opening of another backend.
    session = run.phases.get(_SESSION_PHASE) if "spark" in run.platform else None
    slots = {
        "import": importing,
        "read": read,
        "compute": compute,
        "write": write,
        "shuffle": pack + shuffle,
        "not_split": max(0.0, at_work - read - compute - write - pack),
        "idle": max(0.0, available - at_work - importing - shuffle),
    }
    before = _sum_within(imported.items(), run.started.timestamp(), record.began)
    wall = end - run.started.timestamp()
    driver = {**run.phases, "quanta": seconds}
    driver["other"] = max(0.0, wall - sum(driver.values()))
    return {
        "driver": {name: round(value, 3) for name, value in driver.items()},
        # Before there were slots.
        "before": {
            "session": None if session is None else round(session, 3),
            "session_share": None if session is None else _share(session, wall),
            "import": round(before, 3),
        },
        "slots": {
            "available": round(available, 3),
            **{name: round(value, 3) for name, value in slots.items()},
            "between_quanta": round(max(0.0, available - at_work), 3),
        },
        "shares": round_shares(slots),
    }


def _split_quanta(outcomes: Iterable[QuantumOutcome]) -> tuple[float, float, float, float]:
    """Return the sums of the times of reading, computing, writing and packing, where they were measured."""
    read = compute = write = pack = 0.0
    for outcome in outcomes:
        if outcome.read_seconds is not None and outcome.write_seconds is not None:
            known = outcome.read_seconds + outcome.write_seconds + outcome.pack_seconds
            read += outcome.read_seconds
            write += outcome.write_seconds
            pack += outcome.pack_seconds
            compute += max(0.0, outcome.wall_seconds - known)
    return read, compute, write, pack


def _sum_within(times: Iterable[tuple[tuple[str, float], float]], start: float, end: float) -> float:
    """Return the sum of what some times have in common with another; process and start map to their end."""
    return sum(max(0.0, min(until, end) - max(began, start)) for (_, began), until in times)


def round_shares(sizes: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of named parts of a whole, rounded to 0.001 so that they still add up to 1."""
    whole = sum(sizes.values())
    if not whole:
        return dict.fromkeys(sizes, 0.0)
    exact = {name: 1000 * size / whole for name, size in sizes.items()}
    rounded = {name: int(value) for name, value in exact.items()}
    # The largest remainders are rounded up.
    by_rest = sorted(exact, key=lambda name: rounded[name] - exact[name])
    for name in by_rest[: 1000 - sum(rounded.values())]:
        rounded[name] += 1
    return {name: value / 1000 for name, value in rounded.items()}


def _share(seconds: float, whole: float) -> float:
    return round(min(1.0, seconds / whole), 4) if whole > 0 else 0.0
