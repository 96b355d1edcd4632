"""Texts on a run: progress, failures, summary.  Runs in the driver, and in commands that show runs."""

from __future__ import annotations

__all__ = [
    "describe_state",
    "failure_text",
    "format_progress",
    "format_report",
    "list_rates",
    "list_tasks",
    "progress_line",
]

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..model.outcomes import QuantumOutcome
from ..text import align_rows, format_count, format_data_id, format_seconds
from .progress import STATES, ProgressSnapshot, TaskProgress

_MAX_SINGLE_FAILURES = 5
_MAX_KINDS = 10


def list_rates(snapshot: ProgressSnapshot) -> list[str]:
    """Return the busy slots, the rate, the time so far and the time left."""
    words = [
        f"{snapshot.busy} of {format_count(snapshot.slots, 'slot')} busy",
        f"{snapshot.rate:.3g} quanta/s",
        f"{format_seconds(snapshot.elapsed)} so far",
    ]
    if snapshot.seconds_left:
        words.append(f"about {format_seconds(snapshot.seconds_left)} left")
    return words


def list_tasks(snapshot: ProgressSnapshot) -> list[TaskProgress]:
    """Return the counts of each task and, of several, their sums."""
    return [*snapshot.tasks, *([snapshot.total] if len(snapshot.tasks) > 1 else [])]


def describe_state(state: str, snapshot: ProgressSnapshot) -> str:
    """Return the state of a run, with its rates as long as it is running."""
    if state.startswith("running"):
        return f"{state}. {', '.join(list_rates(snapshot))}."
    return f"{state} after {format_seconds(snapshot.elapsed)}."


def format_progress(run: str, state: str, snapshot: ProgressSnapshot) -> str:
    """Return the progress of a run as a table of plain text."""
    rows: list[tuple[str, ...]] = [("task", *STATES)]
    for task in list_tasks(snapshot):
        rows.append((task.label, *(f"{getattr(task, name):,}" for name in STATES)))
    return "\n".join([f"Run {run}: {describe_state(state, snapshot)}", *align_rows(rows)])


def progress_line(snapshot: ProgressSnapshot) -> str:
    """Return the progress of a run in one line, in the words of ``pipetask``."""
    total = snapshot.total
    failed = total.failed + total.blocked
    text = (
        f"Executed {total.done} quanta successfully, {failed} failed and "
        f"{total.pending + total.running} remain out of total {total.total} quanta; "
        f"{', '.join(list_rates(snapshot))}"
    )
    if snapshot.seconds_left:
        end = datetime.datetime.now().astimezone() + datetime.timedelta(seconds=snapshot.seconds_left)
        text += f" (until {end:%H:%M})"
    return f"{text}."


def failure_text(outcome: QuantumOutcome) -> str:
    """Return why a quantum failed: its exception, or the reason why its process ended."""
    if outcome.reason:
        return outcome.reason
    if (info := outcome.report.exceptionInfo) is not None:
        return f"{info.className.rpartition('.')[2]}: {info.message}"
    return outcome.report.status.name.lower()


def format_report(content: Mapping[str, Any]) -> str:
    """Return the summary of a run that has ended: a table of its tasks, its times, and its failures.

    Parameters
    ----------
    content
        The result of `make_content`, or the content of ``report.json``.
    """
    time, totals = content["time"], content["totals"]
    lines = [
        f"Run {content['run']}: {_verdict(totals)} in {format_seconds(content['seconds'])} "
        f"on {format_count(content['slots'], 'slot')}"
    ]
    if content["reason"]:
        lines.append(content["reason"])
    lines += align_rows(list(_task_rows(content)))
    parts = (f"{name} {format_seconds(seconds)}" for name, seconds in time["driver"].items())
    lines.append(f"Wall time: {', '.join(parts)}.")
    # Reports of earlier releases have no shares.
    if shares := time.get("shares"):
        parts = (f"{name.replace('_', ' ')} {100 * share:.1f} %" for name, share in shares.items() if share)
        lines.append(f"Slot time: {', '.join(parts)}.")
    if "core_hours" in totals:
        lines.append(f"Used: {totals['core_hours']:.3g} core-hours, {totals['gb_hours']:.3g} GB-hours.")
    if totals["ingested"] is not None:
        lines.append(f"{format_count(totals['ingested'], 'dataset')} registered.")
    if totals["retried"]:
        kinds = Counter(attempt["kind"] for each in content["retries"] for attempt in each["attempts"])
        words = ", ".join(f"{n} x {kind}" for kind, n in sorted(kinds.items()))
        verb = "was" if totals["retried"] == 1 else "were"
        lines.append(f"{format_count(totals['retried'], 'quantum', 'quanta')} {verb} retried ({words}).")
    return "\n".join([*lines, *_failure_lines(content)])


def _verdict(totals: Mapping[str, Any]) -> str:
    """Return how many quanta succeeded or failed."""
    n_quanta = totals["quanta"]
    quanta = "quantum" if n_quanta == 1 else "quanta"
    if totals["failed"]:
        return f"{totals['failed']} of {n_quanta} {quanta} failed, {totals['blocked']} blocked"
    if totals["not_run"]:
        return f"{totals['done']} of {n_quanta} {quanta} succeeded, {totals['not_run']} not run"
    return f"all of {n_quanta} {quanta} succeeded"


def _task_rows(content: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of tasks, the heading first."""
    names = ["quanta", "done", "no_work", "failed", "blocked", "not_run", "retried"]
    if content["totals"].get("done_before"):
        names.insert(1, "done_before")
    yield ("task", *(name.replace("_", " ") for name in names), "median", "longest")
    for task in content["tasks"]:
        seconds = task["seconds"]
        times = (format_seconds(seconds[name]) if seconds else "-" for name in ("median", "max"))
        yield (task["label"], *(f"{task[name]:,}" for name in names), *times)


def _failure_lines(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each failure, or for each kind of many, and the commands that rerun them."""
    failures, resume = content["failures"], content["resume"]
    if len(failures) <= _MAX_SINGLE_FAILURES:
        for failure in failures:
            yield f"FAILED {failure['task']} {format_data_id(failure['data_id'])}: {failure['reason']}"
            if failure["rerun"] not in ("", resume):
                yield f"  rerun: {failure['rerun']}"
    else:
        kinds = content["failures_alike"]
        for kind in kinds[:_MAX_KINDS]:
            n_quanta = format_count(kind["count"], "quantum", "quanta")
            yield f"FAILED {n_quanta} of {kind['task']}: {kind['reason']}"
        if len(kinds) > _MAX_KINDS:
            yield f"... and {format_count(len(kinds) - _MAX_KINDS, 'more kind')} of failures; see the report."
    if failures and resume:
        yield f"Rerun all that failed: {resume}"
