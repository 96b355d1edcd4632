"""Where the time of a run went."""

from __future__ import annotations

__all__ = ["split_time"]

from collections.abc import Iterable, Sequence
from typing import Any

from ..model.outcomes import QuantumOutcome
from .record import RunInfo, RunRecord, Span

# In which the driver waits for Spark.
_SESSION_PHASE = "Spark session"


def split_time(run: RunInfo, record: RunRecord, spans: Sequence[Span], end: float) -> dict[str, Any]:
    """Say where the time of the driver and of the slots went.

    Parameters
    ----------
    run
        What was known before.
    record
        What was collected.
    spans
        The attempts that ran.
    end
        When the run ended, in seconds since the epoch.

    Returns
    -------
    content
        The parts of ``slots`` other than ``available`` and
        ``between_quanta`` add up to ``available``; to more where what was
        measured is more, as where slots came later.
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
    whole = sum(slots.values()) or 1.0
    shares = {name: round(value / whole, 4) for name, value in slots.items()}
    before = _sum_within(imported.items(), run.started.timestamp(), record.began)
    return {
        "driver": {**{name: round(value, 3) for name, value in run.phases.items()}, "run": round(seconds, 3)},
        # Before there were slots.
        "before": {
            "session": None if session is None else round(session, 3),
            "session_share": None if session is None else _share(session, end - run.started.timestamp()),
            "import": round(before, 3),
        },
        "slots": {
            "available": round(available, 3),
            **{name: round(value, 3) for name, value in slots.items()},
            "between_quanta": round(max(0.0, available - at_work), 3),
        },
        "shares": shares,
    }


def _split_quanta(outcomes: Iterable[QuantumOutcome]) -> tuple[float, float, float, float]:
    """Add up times of reading, computing, writing and packing, where a quantum has told of them."""
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
    """Add up what of some times, given by process and beginning with their end, lies in another."""
    return sum(max(0.0, min(until, end) - max(began, start)) for (_, began), until in times)


def _share(seconds: float, whole: float) -> float:
    return round(min(1.0, seconds / whole), 4) if whole > 0 else 0.0
