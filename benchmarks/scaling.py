#!/usr/bin/env python3
"""Simulation of the scaling of runs: the engine's own planner and scheduler on simulated slots.

Costs were measured on a small cluster; --costs FILE.json replaces them.  By
default the graphs are built in; --graph and --times name a predicted quantum graph
and the times of its tasks in an earlier run.
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

import numpy as np  # noqa: E402
import scaling_plot  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from simulation import (  # noqa: E402
    Costs,
    Schedule,
    list_schedule,
    simulate,
    simulate_with_barriers,
    with_remaining,
)
from workloads import Workload, draw_times, make_frames, make_night, make_workload  # noqa: E402

_SLOTS = (1, 10, 100, 1_000, 10_000)
_BETWEEN = (3, 30, 300, 3_000)
_POLICY_SLOTS = (50, 200, 1_000)
_MANY = 50_000


class _Case(NamedTuple):
    """Graph whose scaling is simulated."""

    title: str
    workload: Workload
    plotted: bool = True


class _Result(NamedTuple):
    """Simulated runs of a graph on different numbers of slots."""

    case: _Case
    first: Sequence[Schedule]
    """First runs: no times of quanta are known."""
    again: Sequence[Schedule]
    """Runs for which the times of all quanta are known; empty for large graphs."""


def _guess(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return times with random factors, as on another day or another machine."""
    return seconds * np.random.default_rng(0).lognormal(0.0, 0.4, len(seconds))


def _half(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace the time of each second quantum, on average, by the median of the others."""
    known = np.random.default_rng(0).random(len(seconds)) < 0.5
    return np.where(known, seconds, np.median(seconds[known]))


_WEIGHTS: dict[str, Callable[[Workload], NDArray[np.float64]]] = {
    "number of quanta": lambda workload: np.ones(len(workload)),
    "time of every second quantum, the median for others": lambda workload: _half(workload.seconds),
    "time of each quantum, within a factor of about 1.5": lambda workload: _guess(workload.seconds),
    "time of each quantum": lambda workload: workload.seconds,
}
"""Weights of quanta by which the path from a unit to the end of the graph may be measured."""

_FIRST, _AGAIN = "number of quanta", "time of each quantum"
"""Weights that are known in a first run, and in a second run of the same data."""


def _seconds(workload: Workload) -> Callable[[Any], float]:
    return lambda group: -float(workload.seconds[list(group.quanta)].sum())


def compare_policies(seeds: Sequence[int], costs: Costs) -> dict[str, dict[int, list[float]]]:
    """Return the share of the bound that each policy reaches, by slots and seed.

    Parameters
    ----------
    seeds
        Seeds of the mixed workload.
    costs
        Costs; the start of the session is left out.
    """
    costs = costs.model_copy(update={"session": 0.0})
    table: dict[str, dict[int, list[float]]] = {}
    for seed in seeds:
        workload = make_night(seed=seed)
        levels, fused = workload.cut("quantum"), workload.cut()
        disorder = np.random.default_rng(seed).random(len(workload))
        plans = {
            f"dynamic by remaining path: {name}": with_remaining(fused, workload.remaining(weigh(workload)))
            for name, weigh in _WEIGHTS.items()
        }
        for slots in _POLICY_SLOTS:
            runs: dict[str, Schedule] = {
                "barrier between levels": simulate_with_barriers(workload, levels, slots, costs),
                "fused chains, barriers": simulate_with_barriers(workload, fused, slots, costs),
                "fused chains, barriers, longest first": simulate_with_barriers(
                    workload, fused, slots, costs, key=_seconds(workload)
                ),
                "dynamic, random order": simulate(workload, with_remaining(fused, disorder), slots, costs),
            }
            runs |= {name: simulate(workload, plan, slots, costs) for name, plan in plans.items()}
            shares = {name: schedule.efficiency for name, schedule in runs.items()}
            shares["best possible: a scheduler without costs that knows all times"] = workload.bound(
                slots
            ) / list_schedule(workload, fused, slots)
            for name, share in shares.items():
                table.setdefault(name, {}).setdefault(slots, []).append(share)
    return table


def scale(workload: Workload, slots: Sequence[int], costs: Costs, known: str) -> list[Schedule]:
    """Simulate a workload on different numbers of slots.

    Parameters
    ----------
    workload
        The quanta.
    slots
        Numbers of slots.
    costs
        Costs of the parts of a run.
    known
        Weights by which the remaining path is measured.
    """
    plan = with_remaining(workload.cut(), workload.remaining(_WEIGHTS[known](workload)))
    return [simulate(workload, plan, n, costs) for n in slots]


def _built_in(seed: int) -> list[_Case]:
    frames = make_frames(seed=seed)
    return [
        _Case("Raws to tract tables", make_night(seed=seed)),
        _Case("The same, visits' tables through shuffles", make_night(seed=seed, temporary=True), False),
        _Case("Many visits", frames),
        _Case("Many visits, quanta 20 times shorter", frames.with_seconds(frames.seconds / 20)),
    ]


def _from_files(graph_file: Path, times_file: Path, seed: int) -> list[_Case]:
    """Read a graph and the times of its tasks."""
    from spark_butler.planning.sketch import sketch_graph
    from tests.support.stock import read_graph

    graph = read_graph(graph_file)
    sketch = sketch_graph(graph)
    number = {quantum_id: n for n, quantum_id in enumerate(sketch.task_labels)}
    labels = list(sketch.task_labels.values())
    edges = [(number[before], number[after]) for before, after in sketch.edges]
    seconds = draw_times(labels, json.loads(times_file.read_text()), np.random.default_rng(seed))
    bipartite = graph.bipartite_xgraph
    reads = [sum(not bipartite.in_degree(each) for each in bipartite.predecessors(q)) for q in number]
    writes = [bipartite.out_degree(q) for q in number]
    workload = make_workload(graph_file.name, labels, edges, seconds, reads=reads, writes=writes)
    return [_Case(graph_file.name, workload)]


def _duration(seconds: float) -> str:
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _case_table(result: _Result) -> list[str]:
    title, workload, _ = result.case
    lines = [
        f"## {title}",
        "",
        f"{len(workload):,} quanta of {workload.work / len(workload):.3g} s on average, "
        f"{_duration(workload.work)} of work, critical path {_duration(workload.critical_path)}.",
        "",
        "| slots | ideal | simulated | share of ideal | times known | limit "
        "| work | overhead | requests | shuffle | driver | path | stragglers | session |",
        "|" + "---|" * 14,
    ]
    known = {schedule.slots: f"{100 * schedule.efficiency:.0f} %" for schedule in result.again}
    for schedule in result.first:
        total = schedule.wall * schedule.slots
        parts = " | ".join(f"{100 * value / total:.1f}" for _, value in schedule.terms)
        lines.append(
            f"| {schedule.slots:,} | {_duration(schedule.bound)} | {_duration(schedule.wall)} "
            f"| {100 * schedule.efficiency:.0f} % | {known.get(schedule.slots, '')} "
            f"| {schedule.binding} | {parts} |"
        )
    return [*lines, ""]


def _policy_table(table: Mapping[str, Mapping[int, Sequence[float]]]) -> list[str]:
    lines = [
        "| policy | " + " | ".join(f"{slots:,} slots" for slots in _POLICY_SLOTS) + " |",
        "|---|" + "---|" * len(_POLICY_SLOTS),
    ]
    for name, row in table.items():
        cells = []
        for slots in _POLICY_SLOTS:
            shares = [100 * share for share in row[slots]]
            cells.append(f"{statistics.mean(shares):.0f} ({min(shares):.0f}–{max(shares):.0f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cost_table(costs: Costs) -> list[str]:
    lines = ["| name | seconds | cost of | source |", "|---|---|---|---|"]
    for name, field in Costs.model_fields.items():
        value = getattr(costs, name)
        extra = field.json_schema_extra
        source = extra["source"] if isinstance(extra, dict) and value == field.default else "given"
        lines.append(f"| `{name}` | {value:g} | {field.description} | {source} |")
    return [*lines, ""]


def _runs_as_json(runs: Sequence[Schedule]) -> list[dict[str, Any]]:
    return [
        {
            **{"slots": run.slots, "bound": run.bound, "wall": run.wall, "binding": run.binding},
            **{"terms": run.terms.model_dump(), "limits": run.limits},
        }
        for run in runs
    ]


def _as_json(results: Sequence[_Result]) -> list[dict[str, Any]]:
    return [
        {
            **{"title": case.title, "quanta": len(case.workload)},
            **{"work": case.workload.work, "critical path": case.workload.critical_path},
            **{"runs": _runs_as_json(first), "runs with times known": _runs_as_json(again)},
        }
        for case, first, again in results
    ]


def _write(
    output: Path,
    costs: Costs,
    results: Sequence[_Result],
    policies: Mapping[str, Mapping[int, Sequence[float]]],
) -> None:
    """Write tables, figures and plot."""
    output.mkdir(parents=True, exist_ok=True)
    tables = [
        "# Benchmark: simulated runs",
        "",
        "`make bench-scaling` writes this page; [scaling](scaling.md) explains it. Shares of the time "
        "of all slots are in per cent.",
        "",
    ]
    for result in results:
        tables += _case_table(result)
    if policies:
        tables += [
            "## Policies",
            "",
            "Share of the bound in per cent: mean (least–greatest) of several seeds.",
        ]
        tables += ["", *_policy_table(policies)]
    tables += ["## Costs", "", *_cost_table(costs)]
    (output / "scaling-benchmark.md").write_text("\n".join(tables))
    content = {"costs": costs.model_dump(), "cases": _as_json(results), "policies": policies}
    (output / "scaling-benchmark.json").write_text(json.dumps(content, indent=1) + "\n")
    scaling_plot.draw(
        [(case.title, case.workload, first, again) for case, first, again in results if case.plotted],
        output / "scaling-benchmark.png",
    )
    sys.stdout.write("\n".join(tables))


def main() -> None:
    """Run the simulation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--costs", type=Path, help="JSON file with costs that differ from the measured ones")
    parser.add_argument("--graph", type=Path, help="predicted quantum graph instead of the built-in ones")
    parser.add_argument(
        "--times",
        type=Path,
        help="JSON file: seconds of each task by label, a number or a list to draw from (with --graph)",
    )
    parser.add_argument("--slots", type=int, nargs="+", help="numbers of slots")
    parser.add_argument("--seed", type=int, default=5, help="seed of all that is drawn")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds to compare policies with")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for tables and plot")
    arguments = parser.parse_args()
    if (arguments.graph is None) != (arguments.times is None):
        parser.error("--graph and --times go together")
    started = time.monotonic()
    try:
        costs = Costs.model_validate_json(arguments.costs.read_text()) if arguments.costs else Costs()
        if arguments.graph is not None:
            cases = _from_files(arguments.graph, arguments.times, arguments.seed)
        else:
            cases = _built_in(arguments.seed)
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    results = []
    for case in cases:
        few = len(case.workload) < _MANY
        slots = arguments.slots or sorted(_SLOTS + (_BETWEEN if few and case.plotted else ()))
        again = scale(case.workload, slots, costs, _AGAIN) if few else []
        results.append(_Result(case, scale(case.workload, slots, costs, _FIRST), again))
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    policies = {} if arguments.graph is not None else compare_policies(seeds, costs)
    _write(arguments.output, costs, results, policies)
    sys.stderr.write(f"It took {time.monotonic() - started:.0f} s.\n")


if __name__ == "__main__":
    main()
