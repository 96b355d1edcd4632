"""How a run is getting on, as a table of text or HTML."""

from __future__ import annotations

__all__ = ["make_html", "make_text", "tell_seconds"]

import html

from ..text import align_rows
from .progress import ProgressSnapshot, TaskProgress

_COLUMNS = ("pending", "running", "done", "failed", "blocked")
_COLORS = {"running": "#2b7bba", "done": "#2e8540", "failed": "#c0392b", "blocked": "#8e6c1f"}


def make_text(title: str, status: str, snapshot: ProgressSnapshot) -> str:
    """Make a table of plain text.

    Parameters
    ----------
    title
        Name of the run.
    status
        Its status.
    snapshot
        How it stands.
    """
    rows: list[tuple[str, ...]] = [("task", *_COLUMNS)]
    rows += [(task.label, *(str(getattr(task, name)) for name in _COLUMNS)) for task in _tasks(snapshot)]
    return "\n".join([f"Run {title}: {_summary(status, snapshot)}", *align_rows(rows)])


def make_html(
    title: str, status: str, snapshot: ProgressSnapshot, error: str = "", *, report: str | None = None
) -> str:
    """Make a table of HTML that needs nothing else.

    Parameters
    ----------
    title
        Name of the run.
    status
        Its status.
    snapshot
        How it stands.
    error
        What ended it, if it was not its own end.
    report
        Address of its report, if there is one.
    """
    head = "<th style='text-align:left'>task</th><th style='min-width:8em'></th>"
    head += "".join(f"<th style='text-align:right'>{name}</th>" for name in _COLUMNS)
    body = "".join(_html_row(task) for task in _tasks(snapshot))
    wrong = f"<div style='color:{_COLORS['failed']}'>{html.escape(error)}</div>" if error else ""
    return (
        "<div style='max-width:100%;overflow-x:auto'>"
        f"<div><b>{html.escape(title)}</b>: {html.escape(_summary(status, snapshot))}</div>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{wrong}{_html_report(report)}</div>"
    )


def tell_seconds(seconds: float) -> str:
    """Say a length of time.

    Parameters
    ----------
    seconds
        The time in seconds.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _tasks(snapshot: ProgressSnapshot) -> list[TaskProgress]:
    return [*snapshot.tasks, *([snapshot.total] if len(snapshot.tasks) > 1 else [])]


def _summary(status: str, snapshot: ProgressSnapshot) -> str:
    """Say the status, and rate, slots and time left as long as it goes on."""
    if status != "running":
        return f"{status} after {tell_seconds(snapshot.elapsed)}."
    left = snapshot.seconds_left
    words = [
        f"{tell_seconds(snapshot.elapsed)} so far",
        f"{snapshot.rate:.2g} quanta/s",
        f"{snapshot.busy} of {snapshot.slots} slots busy",
        "time left not known yet" if left is None else f"about {tell_seconds(left)} left",
    ]
    return f"{status}. {', '.join(words)}"


def _html_report(address: str | None) -> str:
    """Say where the report is; browsers open only some addresses."""
    if address is None:
        return ""
    shown = text = html.escape(address)
    if address.startswith(("http://", "https://", "file://")):
        shown = f"<a href='{text}' target='_blank'>{text}</a>"
    return f"<div>Report: <span style='overflow-wrap:anywhere'>{shown}</span></div>"


def _html_row(task: TaskProgress) -> str:
    """Make a row, with a bar of the parts that have ended."""
    parts = "".join(
        f"<span style='display:inline-block;height:0.8em;width:{100.0 * count / task.total:.4g}%;"
        f"background:{color}' title='{count} {name}'></span>"
        for name, color in _COLORS.items()
        if (count := getattr(task, name))
    )
    bar = f"<div style='background:#ddd;line-height:0;white-space:nowrap'>{parts or '&nbsp;'}</div>"
    cells = "".join(_html_count(task, name) for name in _COLUMNS)
    return f"<tr><td style='text-align:left'>{html.escape(task.label)}</td><td>{bar}</td>{cells}</tr>"


def _html_count(task: TaskProgress, name: str) -> str:
    count = getattr(task, name)
    color = f";color:{_COLORS[name]};font-weight:bold" if count and name in ("failed", "blocked") else ""
    return f"<td style='text-align:right{color}'>{count}</td>"
