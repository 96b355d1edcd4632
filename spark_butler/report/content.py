"""The content of a report, for ``report.json`` and ``report.html``.  Runs in the driver when a run ends."""

from __future__ import annotations

__all__ = ["FORMAT", "make_content"]

import datetime
import platform
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lsst.pipe.base import QuantumSuccessCaveats

from ..masking import hide_secrets
from ..model.outcomes import FailureKind, QuantumOutcome
from .record import RunInfo, RunRecord, Span
from .rerun import rerun_command
from .text import failure_text
from .timeline import busy_slots, make_lanes, split_time
from .usage import measure_usage

FORMAT = 1
"""Version of the layout of ``report.json``."""

_MAX_LISTED = 2_000
_MAX_TRACEBACKS = 200
_MAX_TEXT = 20_000
_MAX_SPANS = 200_000
_N_SLOWEST = 20
_N_BINS = 240
_NUMBER = re.compile(r"\d+")


def make_content(
    run: RunInfo, record: RunRecord, *, state: str, reason: str = "", n_ingested: int | None = None
) -> dict[str, Any]:
    """Build the content of a report.

    Parameters
    ----------
    state
        State of the run: ``succeeded``, ``failed``, ``stopped`` or ``broken``
        (the engine itself failed).
    reason
        The cause, if the run ended early.
    n_ingested
        Number of datasets that were registered, if known.

    Returns
    -------
    content
        The content, for `json.dumps`.  Times are in seconds, memory and traffic
        in bytes; ``None`` marks values that were not measured.
    """
    now = datetime.datetime.now(datetime.UTC)
    end = now.timestamp()
    outcomes = list(record.outcomes.values())
    by_task: defaultdict[str, list[QuantumOutcome]] = defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.label].append(outcome)
    spans = list(record.spans())
    where = str(run.options.get("where", ""))
    tasks = [
        _describe_task(label, record, by_task[label], n_before=n_before)
        | measure_usage(by_task[label], int(str(run.options.get("cores_per_quantum", 1))))
        for label, n_before in _count_done_before(run, record).items()
    ]
    return {
        "format": FORMAT,
        "run": run.run,
        "repository": run.repository,
        "state": state,
        "reason": hide_secrets(reason),
        "started": run.started.isoformat(timespec="seconds"),
        "ended": now.isoformat(timespec="seconds"),
        "seconds": round((now - run.started).total_seconds(), 3),
        "slots": run.slots,
        "command": list(run.command),
        "options": dict(run.options),
        "platform": dict(run.platform),
        "plan": record.explanation,
        "totals": _total(tasks, outcomes, n_ingested),
        "tasks": tasks,
        "resume": rerun_command(run.command, where),
        **_describe_failures(run, outcomes, narrow=not record.has_temporaries),
        "retries": _describe_retries(outcomes),
        "workers": _describe_workers(outcomes, record),
        "time": split_time(run, record, spans, end),
        "timeline": _lay_out(spans, [task["label"] for task in tasks], record.began, end),
        "slowest": _slowest(outcomes),
        "versions": {"python": platform.python_version(), **dict(sorted(_list_packages().items()))},
    }


def _list_packages() -> dict[str, str]:
    """Return the installed packages, by the names of their folders; parsing metadata takes a second."""
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in Path(place or ".").glob("*.dist-info"):
            name, _, version = folder.stem.partition("-")
            # The first package of a name is the one that is imported.
            found.setdefault(name.replace("_", "-").lower(), version)
    return found


def _count_done_before(run: RunInfo, record: RunRecord) -> dict[str, int]:
    """Return the number of quanta that earlier attempts have done, for each task that has any quanta."""
    counts: dict[str, int] = {}
    for label in dict.fromkeys([*run.done_before, *run.quanta, *record.totals]):
        planned = record.totals.get(label, 0)
        # The counts of a run without a plan are unknown.
        left_out = max(0, run.quanta.get(label, 0) - planned) if record.totals else 0
        n_before = run.done_before.get(label, 0) + left_out
        if planned or n_before:
            counts[label] = n_before
    return counts


def _data_id(outcome: QuantumOutcome) -> dict[str, Any]:
    return dict(outcome.report.dataId or {})


def _measure(attempt: QuantumOutcome) -> dict[str, Any]:
    seconds = round(attempt.wall_seconds, 3)
    return {"worker": attempt.worker, "seconds": seconds, "peak_memory": attempt.peak_memory}


def _describe_task(
    label: str, record: RunRecord, outcomes: Sequence[QuantumOutcome], *, n_before: int
) -> dict[str, Any]:
    """Return the counts of a task's quanta, their times, memory and traffic."""
    total, n_blocked = record.totals.get(label, 0), record.n_blocked.get(label, 0)
    done = [outcome for outcome in outcomes if outcome.succeeded]
    ran = [outcome for outcome in outcomes if outcome.wall_seconds and not outcome.skipped_existing]
    requests: Counter[str] = Counter()
    for outcome in outcomes:
        requests.update(outcome.traffic.requests)
    return {
        "label": label,
        "quanta": total,
        "done_before": n_before,
        "done": len(done),
        "no_work": sum(bool(outcome.caveats & QuantumSuccessCaveats.NO_WORK) for outcome in done),
        "failed": len(outcomes) - len(done),
        "blocked": n_blocked,
        "not_run": total - len(outcomes) - n_blocked,
        "retried": sum(bool(outcome.attempts) for outcome in outcomes),
        "seconds": _distribute([outcome.wall_seconds for outcome in ran]),
        "cpu_seconds": round(sum(outcome.cpu_seconds for outcome in ran), 3),
        "memory": _distribute([float(outcome.peak_memory) for outcome in ran if outcome.peak_memory]),
        "requests": dict(sorted(requests.items())),
        "bytes_read": sum(outcome.traffic.received for outcome in outcomes),
        "bytes_written": sum(outcome.traffic.sent for outcome in outcomes),
    }


def _distribute(values: list[float]) -> dict[str, Any] | None:
    """Return the distribution of values; `None` without values."""
    if not values:
        return None
    values.sort()
    n = len(values)
    logs = np.log(np.maximum(values, 1e-6))
    counts, _ = np.histogram(logs, bins=24 if logs[-1] > logs[0] else 1)
    return {
        "n": n,
        "min": round(values[0], 4),
        "median": round(values[n // 2], 4),
        "p90": round(values[min(n - 1, (9 * n) // 10)], 4),
        "max": round(values[-1], 4),
        "sum": round(sum(values), 4),
        # In bins of equal ratio, from min to max.
        "histogram": counts.tolist(),
    }


def _total(
    tasks: Sequence[Mapping[str, Any]], outcomes: Iterable[QuantumOutcome], n_ingested: int | None
) -> dict[str, Any]:
    names = ["quanta", "done_before", "done", "no_work", "failed", "blocked", "not_run", "retried"]
    names += ["cpu_seconds", "core_hours", "gb_hours", "bytes_read", "bytes_written"]
    return {
        **{name: sum(task[name] for task in tasks) for name in names},
        "requests": sum(sum(task["requests"].values()) for task in tasks),
        "peak_memory": max((outcome.peak_memory for outcome in outcomes), default=0),
        "ingested": n_ingested,
    }


def _describe_failures(run: RunInfo, outcomes: Iterable[QuantumOutcome], *, narrow: bool) -> dict[str, Any]:
    """Return the failures, with the command to rerun each, and the number of each kind."""
    failures: list[dict[str, Any]] = []
    alike: Counter[tuple[str, str]] = Counter()
    where = str(run.options.get("where", ""))
    failed = [outcome for outcome in outcomes if not outcome.succeeded]
    failed.sort(key=lambda outcome: (outcome.label, str(_data_id(outcome))))
    for number, outcome in enumerate(failed):
        reason = failure_text(outcome)
        label = outcome.label
        alike[label, _NUMBER.sub("#", reason)] += 1
        if number >= _MAX_LISTED:
            continue
        data_id = _data_id(outcome)
        failure: dict[str, Any] = {
            "task": label,
            "data_id": data_id,
            "kind": str(outcome.kind or ""),
            "reason": hide_secrets(reason),
            "attempts": len(outcome.attempts) + 1,
            **_measure(outcome),
            # A narrowed rerun would make temporaries again, and gather them from fewer inputs.
            "rerun": rerun_command(run.command, where, label=label if narrow else None, data_id=data_id),
        }
        if number < _MAX_TRACEBACKS:
            failure["traceback"] = _shorten(hide_secrets(outcome.traceback))
            failure["log_tail"] = _shorten(hide_secrets(outcome.log_tail))
        failures.append(failure)
    kinds = [
        {"task": label, "reason": hide_secrets(reason), "count": n}
        for (label, reason), n in alike.most_common(50)
    ]
    return {"failures": failures, "failures_alike": kinds}


def _shorten(text: str) -> str:
    """Cut the middle out of a text that is too long."""
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[: _MAX_TEXT // 2]}\n[...]\n{text[-_MAX_TEXT // 2 :]}"


def _describe_retries(outcomes: Iterable[QuantumOutcome]) -> list[dict[str, Any]]:
    """Return the quanta that were tried more than once."""
    tried_again = [outcome for outcome in outcomes if outcome.attempts]
    return [
        {
            "task": outcome.label,
            "data_id": _data_id(outcome),
            "succeeded": outcome.succeeded,
            "attempts": [
                {
                    "kind": str(attempt.kind),
                    "reason": hide_secrets(attempt.reason),
                    **_measure(attempt),
                }
                for attempt in outcome.attempts
            ],
        }
        for outcome in tried_again[:_MAX_LISTED]
    ]


def _describe_workers(outcomes: Sequence[QuantumOutcome], record: RunRecord) -> dict[str, Any]:
    """Return the number of processes, the hosts, and the processes that were lost."""
    workers = {outcome.worker for outcome in outcomes} - {""}
    attempts = (each for outcome in outcomes for each in (outcome, *outcome.attempts))
    lost = {each.worker for each in attempts if each.kind is FailureKind.LOST} - {""}
    return {
        "processes": len(workers),
        "hosts": sorted({worker.rpartition(":")[0] for worker in workers}),
        "lost": sorted(lost),
        "quanta_given_again": record.n_given_again,
        "quanta_found_complete": sum(outcome.recovered for outcome in outcomes),
        "quanta_repeated": len(record.repeated),
    }


def _lay_out(spans: Sequence[Span], labels: list[str], start: float, end: float) -> dict[str, Any]:
    """Return the attempts of each slot, with their times."""
    if spans:
        # Clocks of other hosts may differ.
        start = min(start, min(span.started for span in spans))
        end = max(end, max(span.started + span.seconds for span in spans))
    number = {label: n for n, label in enumerate(labels)}
    lanes = make_lanes(spans) if len(spans) <= _MAX_SPANS else []
    return {
        "start": round(start, 3),
        "seconds": round(end - start, 3),
        "labels": labels,
        "busy": busy_slots(spans, labels, start, end, _N_BINS),
        "lanes": [
            {
                "host": lane.host,
                "slot": lane.number,
                # Start, length, task, status.
                "attempts": [
                    [
                        round(span.started - start, 3),
                        round(span.seconds, 3),
                        number.get(span.label, -1),
                        span.status,
                    ]
                    for span in lane.spans
                ],
            }
            for lane in lanes
        ],
    }


def _slowest(outcomes: Iterable[QuantumOutcome]) -> list[dict[str, Any]]:
    longest = sorted(outcomes, key=lambda outcome: -outcome.wall_seconds)[:_N_SLOWEST]
    return [
        {
            "task": outcome.label,
            "data_id": _data_id(outcome),
            **_measure(outcome),
            "cpu_seconds": round(outcome.cpu_seconds, 3),
        }
        for outcome in longest
        if outcome.wall_seconds
    ]
