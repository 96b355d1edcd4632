"""Table and plot of the benchmark of engines."""

from __future__ import annotations

__all__ = ["write_results"]

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

type Row = Mapping[str, Any]

_SLOTS = 2


def write_results(rows: Sequence[Row], output: Path) -> None:
    """Write the table, the plot and the measured figures.

    Parameters
    ----------
    rows
        Figures of each run.
    output
        Folder for the files.
    """
    output.mkdir(parents=True, exist_ok=True)
    loads = [row["load"] for row in rows]
    note = (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {sys.version.split()[0]}; load average before each run {min(loads):.1f} to {max(loads):.1f}."
        " Medians of the runs that ended well. Stolen is the part of the processor time that the host of "
        "this virtual machine gave to others meanwhile. The S3 server counts HEAD requests as reads."
    )
    text = "\n".join([*_table(rows), "", *_ratios(rows), "", note, ""])
    (output / "performance-benchmark.md").write_text(text)
    (output / "performance-benchmark.json").write_text(json.dumps(rows, indent=1))
    _draw(rows, output / "performance-benchmark.png")


def _whole(rows: Sequence[Row], graph: str, engine: str) -> list[Row]:
    """Return the runs of one graph by one engine that succeeded."""
    return [
        row
        for row in rows
        if (row["graph"], row["engine"]) == (graph, engine)
        and not row["status"]
        and row["metadata"] == row["quanta"]
    ]


def _stopped(rows: Sequence[Row], graph: str, engine: str) -> Row | None:
    """Return the run that was stopped after some quanta, if no run succeeded."""
    found = [
        row
        for row in rows
        if (row["graph"], row["engine"]) == (graph, engine) and row.get("stopped") and row["metadata"]
    ]
    return None if _whole(rows, graph, engine) or not found else found[-1]


def _median(rows: Sequence[Row], key: str) -> float:
    """Return the median of a figure; for a running session or cluster, its start is not part of the time."""
    return statistics.median(row.get("result", {}).get(key, row[key]) for row in rows)


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| graph | quanta | engine | runs | wall s | CPU s | CPU s per quantum | stolen "
        "| peak MB: driver, JVM, others | requests per quantum: read, write, other |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    kinds = sorted(
        dict.fromkeys((row["graph"], row["quanta"], row["engine"]) for row in rows), key=_rank(rows)
    )
    for graph, quanta, engine in kinds:
        whole = _whole(rows, graph, engine)
        if stopped := _stopped(rows, graph, engine):
            wall, cpu, n_done = stopped["wall"], stopped["cpu"], stopped["metadata"]
            lines.append(
                f"| {graph} | {quanta} | {engine} | stopped with {n_done} done | > {wall:.1f} | > {cpu:.1f} "
                f"| {cpu / n_done:.3f} | {_percent([stopped])} |  |  |"
            )
            continue
        if not whole:
            lines.append(f"| {graph} | {quanta} | {engine} | failed |  |  |  |  |  |  |")
            continue
        wall, cpu = _median(whole, "wall"), _median(whole, "cpu")
        peak = ", ".join(
            f"{statistics.median(row['peak'].get(role, 0) for row in whole) / 1e6:.0f}"
            for role in ("driver", "jvm", "others")
        )
        requests = whole[0]["requests"]
        other = sum(count for kind, count in requests.items() if kind not in ("GET", "PUT"))
        asked = f"{requests.get('GET', 0):.2f}, {requests.get('PUT', 0):.2f}, {other:.2f}"
        lines.append(
            f"| {graph} | {quanta} | {engine} | {len(whole)} | {wall:.1f} | {cpu:.1f} "
            f"| {cpu / quanta:.3f} | {_percent(whole)} | {peak} | {asked} |"
        )
    return lines


def _percent(rows: Sequence[Row]) -> str:
    return f"{100 * statistics.median(row.get('stolen', 0.0) for row in rows):.0f} %"


def _rank(rows: Sequence[Row]) -> Any:
    """Return a sort key: graphs in the order of first appearance, and the engines of a graph likewise."""
    graphs = list(dict.fromkeys(row["graph"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    return lambda kind: (graphs.index(kind[0]), engines.index(kind[2]))


def _ratios(rows: Sequence[Row]) -> list[str]:
    """Return sentences that compare the figures of the engines."""
    lines = []
    for graph in dict.fromkeys(row["graph"] for row in rows):
        cold, warm = _whole(rows, graph, "spark-butler"), _whole(rows, graph, "spark-butler, warm")
        floor = _whole(rows, graph, "floor")
        for peer in ("run-qbb -j 1", "run-qbb -j 2", "BPS + Parsl"):
            if cold and (other := _whole(rows, graph, peer)):
                cpu, wall = (_median(other, key) / _median(cold, key) for key in ("cpu", "wall"))
                lines.append(
                    f"- {graph}: {peer} takes {cpu:.1f} times the processor time of `spark-butler run` and "
                    f"{wall:.1f} times its wall time, session start included."
                )
            elif cold and (stopped := _stopped(rows, graph, peer)):
                cpu, wall = (stopped[key] / _median(cold, key) for key in ("cpu", "wall"))
                lines.append(
                    f"- {graph}: {peer} was stopped when it had done {stopped['metadata']} of "
                    f"{stopped['quanta']} quanta in {cpu:.1f} times the processor time and {wall:.1f} times "
                    "the wall time of `spark-butler run`, session start included."
                )
        if not warm:
            continue
        wall = _median(warm, "wall")
        seconds = warm[0].get("seconds", 0.0)
        if seconds:
            share = seconds * warm[0]["quanta"] / (_SLOTS * wall)
            lines.append(
                f"- {graph}: in a session that is up, the tasks' own time is {share:.3f} of wall time × "
                f"{_SLOTS} slots."
            )
        if floor:
            spent = _SLOTS * wall / _median(floor, "wall")
            lines.append(
                f"- {graph}: in a session that is up, wall time × {_SLOTS} slots is {spent:.2f} times the "
                f"floor's wall time: a parallel efficiency of {1 / spent:.2f}."
            )
        if "compute" in warm[0]:
            compute = statistics.median(row["compute"] for row in warm)
            lines.append(
                f"- {graph}: in a session that is up, wall time is {_SLOTS * wall / compute:.2f} times the "
                f"tasks' own time ({compute:.1f} s) divided by {_SLOTS} slots."
            )
    sizes = {row["quanta"]: row["graph"] for row in rows if row["graph"].endswith(" mock, 0 s")}
    walls = {
        quanta: _median(whole, "wall")
        for quanta, graph in sizes.items()
        if (whole := _whole(rows, graph, "spark-butler, warm"))
    }
    if len(walls) > 1:
        costs = ", ".join(f"{1000 * _SLOTS * wall / n:.1f} ms ({n})" for n, wall in sorted(walls.items()))
        lines.append(f"- In a session that is up, wall time × {_SLOTS} slots per quantum of 0 s: {costs}.")
    return lines


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Draw processor and wall time per quantum, in a panel per graph that several engines have run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        graph: found
        for graph in dict.fromkeys(row["graph"] for row in rows)
        if len(
            found := {
                engine: whole
                for engine in dict.fromkeys(row["engine"] for row in rows)
                if (whole := _whole(rows, graph, engine))
            }
        )
        > 1
    }
    if not panels:
        return
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(6 * n_columns, 0.6 + 2.6 * n_rows), squeeze=False)
    for axis, (graph, found) in zip(axes.flat, panels.items(), strict=False):
        names = list(found)[::-1]
        quanta = next(iter(found.values()))[0]["quanta"]
        for shift, key, label in ((0.2, "cpu", "processor s"), (-0.2, "wall", "wall s")):
            values = [_median(found[name], key) / quanta for name in names]
            bars = axis.barh([n + shift for n in range(len(names))], values, 0.38, label=label)
            axis.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.margins(x=0.18)
        axis.set_title(f"{graph} ({quanta} quanta)", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("seconds per quantum")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    figure.savefig(path, dpi=110)
    plt.close(figure)
