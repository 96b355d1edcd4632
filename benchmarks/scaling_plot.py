"""Plot of simulated runs against the number of slots."""

from __future__ import annotations

__all__ = ["draw"]

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from simulation import Schedule
from workloads import Workload

_TERMS = {
    "work": ("tasks at work", "#2a6f97"),
    "overhead": ("overhead of quanta and groups", "#61a5c2"),
    "requests": ("waiting for the object store", "#a9d6e5"),
    "shuffle": ("shuffles", "#7b2cbf"),
    "driver": ("idle: driver or Spark's scheduler is behind", "#d62828"),
    "order": ("idle: stragglers hold up what comes next", "#f77f00"),
    "path": ("idle: critical path, no schedule is faster", "#d9d9d9"),
    "session": ("idle: session starts", "#8d99ae"),
}
_TICKS = {
    **{1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min"},
    **{3600: "1 h", 6 * 3600: "6 h", 86400: "1 day", 7 * 86400: "1 week", 30 * 86400: "30 days"},
}
_BINDING = {"slots": "more slots help", "driver": "the driver binds", "session": "the session's start binds"}
_BINDING |= {"critical path": "the critical path binds", "stragglers": "stragglers bind"}
_BINDING |= {"object store": "the object store binds", "Spark jobs": "Spark's driver binds"}
_BINDING |= {"Spark tasks": "Spark's scheduler binds"}


def draw(cases: Sequence[tuple[str, Workload, Sequence[Schedule], Sequence[Schedule]]], path: Path) -> None:
    """Draw the time beside the ideal time, and how the slots spend their time.

    Parameters
    ----------
    cases
        Title, workload, first runs and runs with times known of each column.
    path
        File to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, axes = plt.subplots(
        2,
        len(cases),
        figsize=(1 + 4.6 * len(cases), 8.4),
        squeeze=False,
        sharex="col",
        height_ratios=(1.3, 1),
    )
    for (title, workload, first, again), above, below in zip(cases, *axes, strict=True):
        _draw_times(above, workload, first, again)
        above.set_title(
            f"{title}\n{len(workload):,} quanta of {workload.work / len(workload):.3g} s", size=11
        )
        _draw_shares(below, first)
        below.yaxis.set_major_formatter(PercentFormatter(1.0))
        below.set_xlabel("slots (quanta that can run at once)")
    axes[0][0].set_ylabel("time of the run")
    axes[1][0].set_ylabel("what the slots do, in a first run")
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    # The same figures must give the same file, so it contains no dates or random IDs.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw_times(  # type: ignore[no-untyped-def]
    axis, workload: Workload, first: Sequence[Schedule], again: Sequence[Schedule]
) -> None:
    """Draw the time against the number of slots, and label what limits it."""
    slots = [run.slots for run in first]
    dense = np.geomspace(min(slots), max(slots), 100)
    axis.plot(dense, workload.work / dense, ":", color="0.5", label="work / slots")
    axis.axhline(workload.critical_path, ls="-.", lw=1, color="0.5", label="critical path")
    bounds = [max(workload.work / n, workload.critical_path) for n in dense]
    axis.plot(dense, bounds, "-", lw=5, color="0.85", label="ideal: the greater of both")
    axis.plot(slots, [run.wall for run in first], "o-", color="#d62828", label="first run")
    if again:
        walls = [run.wall for run in again]
        axis.plot(slots, walls, "s--", ms=4, color="#2a6f97", label="times of the quanta known")
    before = ""
    for run in first:
        if run.binding != before:
            at_the_edge = run.slots == max(slots)
            axis.annotate(
                _BINDING.get(run.binding, run.binding),
                (run.slots, run.wall),
                xytext=(10, 26) if at_the_edge else (3, 9),
                ha="right" if at_the_edge else "center" if run.binding == "critical path" else "left",
                textcoords="offset points",
                size=8.5,
                color="#d62828",
            )
        before = run.binding
    axis.set_xscale("log")
    axis.set_yscale("log")
    low = min(run.bound for run in first) / 8
    high = 3 * max(run.wall for run in first)
    axis.set_ylim(low, high)
    axis.set_xlim(min(slots) / 1.6, 2.6 * max(slots))
    ticks = {seconds: text for seconds, text in _TICKS.items() if low <= seconds <= high}
    axis.set_yticks(list(ticks), list(ticks.values()))
    axis.minorticks_off()
    powers = [10**n for n in range(20) if min(slots) <= 10**n <= max(slots)]
    axis.set_xticks(powers, [f"{n:,}" for n in powers])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")


def _draw_shares(axis, runs: Sequence[Schedule]) -> None:  # type: ignore[no-untyped-def]
    """Draw bars of the shares of the slots' time."""
    bottom = [0.0] * len(runs)
    widths = [run.slots * 0.35 for run in runs]
    for name, (label, color) in _TERMS.items():
        heights = [getattr(run.terms, name) / (run.wall * run.slots) for run in runs]
        axis.bar([run.slots for run in runs], heights, widths, bottom, color=color, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set_ylim(0, 1)
