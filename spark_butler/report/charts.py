"""The pictures of a report, as SVG that stretches with its page."""

from __future__ import annotations

__all__ = ["busy_chart", "histogram", "lanes_chart", "split_bar", "task_colors"]

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_N_COLORS = 7
_WIDTH = 1000.0
_MAX_LANES = 64
_MAX_MARKS = 20_000
_MAX_TITLED = 3_000


def task_colors(tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Give the tasks that take most time a color each, and all others the same gray.

    Parameters
    ----------
    tasks
        Tasks as the content of a report has them.

    Returns
    -------
    colors
        Name of a style class, by task label.
    """
    by_time = sorted(tasks, key=lambda task: -(task["seconds"] or {"sum": 0.0})["sum"])
    chosen = {task["label"] for task in by_time[:_N_COLORS]}
    colors: dict[str, str] = {}
    for task in tasks:
        n = sum(color != "c0" for color in colors.values()) + 1
        colors[task["label"]] = f"c{n}" if task["label"] in chosen else "c0"
    return colors


def busy_chart(timeline: Mapping[str, Any], colors: Mapping[str, str], slots: int) -> str:
    """Draw how many slots were busy with what task.

    Parameters
    ----------
    timeline
        As the content of a report has it.
    colors
        Style classes of the tasks.
    slots
        How many slots there were.
    """
    rows: Sequence[Sequence[float]] = timeline["busy"]
    n_bins = len(rows[0]) if rows else 0
    if not n_bins:
        return ""
    top = max(slots, *(sum(row[n] for row in rows) for n in range(n_bins)), 1)
    height = 120.0
    step = _WIDTH / n_bins
    base = [0.0] * n_bins
    paths = []
    # Gray ones together, so that they are one area.
    for label, row in sorted(zip(timeline["labels"], rows, strict=True), key=lambda item: colors[item[0]]):
        if not any(row):
            continue
        upper = [low + value for low, value in zip(base, row, strict=True)]
        ahead = " ".join(
            f"L{_n(n * step)} {_n(height * (1 - upper[n] / top))}H{_n((n + 1) * step)}" for n in range(n_bins)
        )
        back = " ".join(
            f"L{_n((n + 1) * step)} {_n(height * (1 - base[n] / top))}H{_n(n * step)}"
            for n in reversed(range(n_bins))
        )
        paths.append(
            f'<path class="{colors[label]}" d="M0 {_n(height * (1 - base[0] / top))}{ahead}{back}Z">'
            f"<title>{escape(label)}</title></path>"
        )
        base = upper
    line = _n(height * (1 - slots / top))
    return (
        f'<svg class="chart" viewBox="0 0 {_n(_WIDTH)} {_n(height)}" preserveAspectRatio="none" role="img" '
        f'aria-label="Slots busy over time" style="height:120px">{"".join(paths)}'
        f'<path class="limit" d="M0 {line}H{_n(_WIDTH)}"><title>{slots} slots</title></path></svg>'
    )


def lanes_chart(timeline: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    """Draw what each slot did when; empty where there are too many of them.

    Parameters
    ----------
    timeline
        As the content of a report has it.
    colors
        Style classes of the tasks.
    """
    lanes: Sequence[Mapping[str, Any]] = timeline["lanes"]
    if not lanes or len(lanes) > _MAX_LANES:
        return ""
    titled = sum(len(lane["attempts"]) for lane in lanes) <= _MAX_TITLED
    # A mark is never finer than what the file has room for.
    finest = max(0.5, _WIDTH * len(lanes) / _MAX_MARKS)
    by_host: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for lane in lanes:
        by_host[lane["host"]].append(lane)
    parts = []
    for host, own in by_host.items():
        marks = "".join(
            _draw_lane(lane, row * 16, timeline, colors, finest, titled=titled)
            for row, lane in enumerate(own)
        )
        height = 16 * len(own) - 2
        parts.append(
            f"<figure><figcaption>{escape(host)}: {len(own)} slot{'s'[: len(own) != 1]}</figcaption>"
            f'<svg class="chart" viewBox="0 0 {_n(_WIDTH)} {height}" preserveAspectRatio="none" role="img" '
            f'aria-label="What the slots of {escape(host)} did" style="height:{height}px">{marks}</svg>'
            "</figure>"
        )
    return "".join(parts)


def _draw_lane(
    lane: Mapping[str, Any],
    y: int,
    timeline: Mapping[str, Any],
    colors: Mapping[str, str],
    finest: float,
    *,
    titled: bool,
) -> str:
    """Draw the attempts of a slot, those together that can't be told apart."""
    scale = _WIDTH / (timeline["seconds"] or 1.0)
    labels = timeline["labels"]
    marks: list[list[Any]] = []
    for start, seconds, number, status in lane["attempts"]:
        label = labels[number] if number >= 0 else "?"
        x, end = start * scale, (start + seconds) * scale
        kind = colors.get(label, "c0") if status == "done" else f"{colors.get(label, 'c0')} {status}"
        last = marks[-1] if marks else None
        if not titled and last is not None and last[2] == kind and x - last[1] < finest:
            last[1] = max(last[1], end)
        elif not titled and last is not None and end - last[0] < finest and status == "done":
            last[1] = max(last[1], end)
        else:
            marks.append([x, end, kind, f"{label}, {seconds:.2f} s from {start:.1f} s, {status}"])
    drawn = []
    for x, end, kind, title in marks:
        shape = f'<rect class="{kind}" x="{_n(x)}" y="{y}" width="{_n(max(end - x, 0.4))}" height="14"'
        drawn.append(f"{shape}><title>{escape(title)}</title></rect>" if titled else f"{shape}/>")
    return "".join(drawn)


def histogram(distribution: Mapping[str, Any], color: str) -> str:
    """Draw a distribution as bars.

    Parameters
    ----------
    distribution
        As the content of a report has it.
    color
        Style class.
    """
    counts: Sequence[int] = distribution["histogram"]
    top = max(counts)
    width = 240 / len(counts)
    bars = "".join(
        f'<rect class="{color}" x="{_n(n * width)}" y="{_n(36 - 36 * count / top)}" '
        f'width="{_n(width - 1)}" height="{_n(36 * count / top)}"><title>{count}</title></rect>'
        for n, count in enumerate(counts)
        if count
    )
    return (
        '<svg class="hist" viewBox="0 0 240 37" preserveAspectRatio="none" role="img" '
        f'aria-label="Histogram of {distribution["n"]} values">{bars}'
        '<path class="axis" d="M0 36.5H240"/></svg>'
    )


def split_bar(parts: Sequence[tuple[str, str, float]]) -> str:
    """Draw how a whole is made up.

    Parameters
    ----------
    parts
        Name, style class and size of each part.
    """
    whole = sum(size for _, _, size in parts)
    if not whole:
        return ""
    x = 0.0
    drawn = []
    for name, color, size in parts:
        width = _WIDTH * size / whole
        if size:
            drawn.append(
                f'<rect class="{color}" x="{_n(x)}" y="0" width="{_n(max(width - 2, 0.5))}" height="22">'
                f"<title>{escape(name)}: {100 * size / whole:.1f} %</title></rect>"
            )
        x += width
    return (
        f'<svg class="chart" viewBox="0 0 {_n(_WIDTH)} 22" preserveAspectRatio="none" role="img" '
        f'aria-label="Where the time went" style="height:22px">{"".join(drawn)}</svg>'
    )


def _n(value: float) -> str:
    """Write a coordinate with as few digits as show."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
