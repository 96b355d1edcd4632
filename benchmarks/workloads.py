"""Workloads for simulations: graphs of quanta with their times, sizes and requests."""

from __future__ import annotations

__all__ = ["Workload", "draw_times", "make_frames", "make_night", "make_workload"]

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import networkx
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch, GroupBy, Handover, Plan

type Edge = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Task:
    """Properties of the quanta of a task."""

    seconds: float
    """Mean time of a quantum before all times are scaled."""

    sigma: float
    """Width of the lognormal distribution of times."""

    reads: int = 0
    """Number of inputs that no quantum makes: raws, calibrations, reference catalogs."""

    writes: int = 3
    """Number of stored outputs; two of them are metadata and log."""


# isr and characterize pass their outputs in memory: they write only metadata and logs.
_TASKS = {
    "isr": _Task(25, 0.3, reads=3, writes=2),
    "characterize": _Task(60, 0.5, writes=2),
    "calibrate": _Task(70, 0.7, reads=1, writes=4),
    "visit_table": _Task(120, 0.3),
    "recalibrate": _Task(200, 0.4),
    "warp": _Task(40, 0.6),
    "coadd": _Task(300, 0.5),
    "detect": _Task(150, 0.4),
    "deblend": _Task(500, 1.0),
    "measure": _Task(400, 0.6),
    "forced": _Task(400, 0.5),
    "tract_table": _Task(300, 0.3),
    "validate": _Task(200, 0.3),
}
_OF_PATCHES = ("coadd", "detect", "deblend", "measure", "forced")
_TABLE_BYTES = 29e6
_DETECTORS_PER_WARP = 4
_VISITS_PER_PATCH = 4


@dataclasses.dataclass(frozen=True)
class Workload:
    """Quanta with their dependencies and costs; a quantum is a number from 0."""

    name: str
    """Name of the workload, for tables and plots."""

    labels: Sequence[str]
    """Task label of each quantum."""

    edges: Sequence[Edge]
    """Pairs of quanta; the second depends on the first."""

    seconds: NDArray[np.float64]
    """Time of the task in each quantum, in seconds."""

    reads: Sequence[int]
    """Number of inputs of each quantum that no other quantum makes."""

    writes: Sequence[int]
    """Number of stored outputs of each quantum, metadata and log included."""

    handovers: Sequence[Handover] = ()
    """Temporaries with their producers and consumers."""

    sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Size in bytes of a temporary, by dataset type."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def work(self) -> float:
        """Time of all quanta together, in seconds."""
        return float(self.seconds.sum())

    @functools.cached_property
    def critical_path(self) -> float:
        """Time of the longest path, in seconds."""
        return float(self.remaining(self.seconds).max(initial=0.0))

    def bound(self, slots: int) -> float:
        """Return a lower bound of the time of any schedule, in seconds.

        Parameters
        ----------
        slots
            Number of quanta that can run at the same time.
        """
        return max(self.work / slots, self.critical_path)

    def remaining(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the length of the longest path from each quantum to the end of the graph, itself included.

        Parameters
        ----------
        weights
            Length of each quantum.
        """
        lengths = weights.tolist()
        after = [0.0] * len(lengths)
        feeds = self._feeds
        for quantum in reversed(self._order):
            longest = max((after[other] for other in feeds[quantum]), default=0.0)
            after[quantum] = lengths[quantum] + longest
        return np.array(after)

    @functools.cached_property
    def xgraph(self) -> networkx.DiGraph[int]:
        """The graph of quanta in the form that the scheduler takes."""
        graph: networkx.DiGraph[int] = networkx.DiGraph()
        graph.add_nodes_from((n, {"task_label": label, "data_id": {}}) for n, label in enumerate(self.labels))
        graph.add_edges_from(self.edges)
        return graph

    @functools.cached_property
    def _feeds(self) -> list[list[int]]:
        feeds: list[list[int]] = [[] for _ in self.labels]
        for before, after in self.edges:
            feeds[before].append(after)
        return feeds

    @functools.cached_property
    def _order(self) -> list[int]:
        return list(networkx.topological_sort(self.xgraph))

    def cut(self, group_by: GroupBy = "fused") -> Plan:
        """Cut the graph as the engine does.

        Parameters
        ----------
        group_by
            The grain.
        """
        labels = dict(enumerate(self.labels))
        sketch = GraphSketch(labels, self.edges, self.handovers, sizes=self.sizes)  # type: ignore[arg-type]
        return cut_graph(sketch, group_by=group_by)

    def with_seconds(self, seconds: NDArray[np.float64], name: str | None = None) -> Workload:
        """Return a copy with other times.

        Parameters
        ----------
        seconds
            Time of each quantum.
        name
            Another name.
        """
        return dataclasses.replace(self, seconds=seconds, name=name or self.name)


def make_workload(
    name: str,
    labels: Sequence[str],
    edges: Iterable[Edge],
    seconds: Sequence[float] | NDArray[np.float64],
    *,
    reads: Sequence[int] | None = None,
    writes: Sequence[int] | None = None,
    **more: Sequence[Handover] | Mapping[str, float],
) -> Workload:
    """Make a workload from labels, edges and times.

    Parameters
    ----------
    name
        What it is.
    labels
        Task label of each quantum.
    edges
        Pairs of quanta; the second depends on the first.  Each pair occurs once.
    seconds
        Time of each quantum.
    reads
        Number of inputs of each quantum that no other quantum makes.  By
        default that of the built-in task; for other tasks 1 if the quantum
        depends on no other.
    writes
        Number of stored outputs of each quantum; by default that of the
        built-in task, or 3 for other tasks.
    **more
        Temporaries and their sizes, as `Workload` has them.
    """
    edges = list(dict.fromkeys(edges))
    needy = {after for _, after in edges}
    if reads is None:
        reads = [
            _TASKS[label].reads if label in _TASKS else int(n not in needy) for n, label in enumerate(labels)
        ]
    if writes is None:
        writes = [_TASKS[label].writes if label in _TASKS else 3 for label in labels]
    return Workload(name, labels, edges, np.asarray(seconds, float), reads, writes, **more)


def make_night(
    *,
    seed: int = 5,
    visits: int = 24,
    detectors: int = 99,
    patches: int = 225,
    tracts: int = 18,
    hours: float = 217.0,
    critical_hours: float = 1.4,
    temporary: bool = False,
) -> Workload:
    """Make a mixed workload, from raws to tables of tracts.

    Chains isr, characterize, calibrate of each visit and detector; table and
    calibration of each visit; visits lie along a strip of sky, and a few of
    them overlap each patch: a warp for each, then the chain from coadd to
    forced photometry; tables of each tract.

    Parameters
    ----------
    seed
        Seed of all that is drawn.
    visits, detectors, patches, tracts
        How many there are of each.
    hours
        Time of all quanta together.
    critical_hours
        Time of the longest path.
    temporary
        Whether the tables that visits gather are temporaries, which a shuffle
        carries.
    """
    rng = default_rng(seed)
    graph = _Graph()
    frames = [graph.add_visit(detectors) for _ in range(visits)]
    ends: list[list[int]] = [[] for _ in range(tracts)]
    for patch in range(patches):
        first = patch * (visits - _VISITS_PER_PATCH + 1) // patches
        warps = []
        for calibrated, visit in frames[first : first + _VISITS_PER_PATCH]:
            overlap = rng.choice(detectors, min(_DETECTORS_PER_WARP, detectors), replace=False)
            warps.append(graph.add("warp", [visit, *(calibrated[n] for n in overlap)]))
        last = graph.add("coadd", warps)
        for label in _OF_PATCHES[1:]:
            last = graph.add(label, [last])
        ends[patch * tracts // patches].append(last)
    for tract in ends:
        graph.add("validate", [graph.add("tract_table", tract)])
    workload = graph.finish("night", _draw(graph.labels, rng), temporary=temporary)
    heavy = np.isin(np.array(graph.labels), _OF_PATCHES)
    return workload.with_seconds(_fit(workload, heavy, 3600 * hours, 3600 * critical_hours))


def make_frames(*, seed: int = 5, visits: int = 320, detectors: int = 104, scale: float = 1.0) -> Workload:
    """Make a large workload with a short critical path: many independent visits.

    Parameters
    ----------
    seed
        Seed of all that is drawn.
    visits, detectors
        How many there are of each.
    scale
        Factor on all times.
    """
    rng = default_rng(seed)
    graph = _Graph()
    for _ in range(visits):
        graph.add_visit(detectors)
    return graph.finish("frames", scale * _draw(graph.labels, rng))


def draw_times(
    labels: Sequence[str], times: Mapping[str, float | Sequence[float]], rng: Generator
) -> NDArray[np.float64]:
    """Draw times of quanta from those of an earlier run.

    Parameters
    ----------
    labels
        Task label of each quantum.
    times
        Seconds by task label: a number, or a list to draw from.
    rng
        Random number generator.

    Returns
    -------
    seconds
        Time of each quantum.

    Raises
    ------
    ValueError
        Raised if a task has no times.
    """
    missing = sorted(set(labels) - {label for label, known in times.items() if np.size(known)})
    if missing:
        raise ValueError(f"There are no times of these tasks: {', '.join(missing)}.")
    return np.array([rng.choice(np.atleast_1d(times[label])) for label in labels], float)


class _Graph:
    """Builder of a graph."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.edges: list[Edge] = []
        self.tables: list[Handover] = []

    def add(self, label: str, needs: Sequence[int] = ()) -> int:
        number = len(self.labels)
        self.labels.append(label)
        self.edges += [(need, number) for need in needs]
        return number

    def add_visit(self, detectors: int) -> tuple[list[int], int]:
        """Add a visit; return its calibrated detectors, and its last quantum."""
        calibrated = []
        for _ in range(detectors):
            isr = self.add("isr")
            calibrated.append(self.add("calibrate", [self.add("characterize", [isr])]))
        table = self.add("visit_table", calibrated)
        self.tables += [Handover(n, "sources", n, (table,)) for n in calibrated]  # type: ignore[arg-type]
        return calibrated, self.add("recalibrate", [table])

    def finish(self, name: str, seconds: NDArray[np.float64], *, temporary: bool = False) -> Workload:
        tables = self.tables if temporary else []
        sizes = {"sources": _TABLE_BYTES}
        return make_workload(name, self.labels, self.edges, seconds, handovers=tables, sizes=sizes)


def _draw(labels: Sequence[str], rng: Generator) -> NDArray[np.float64]:
    """Draw times from a lognormal distribution for each task."""
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for n, label in enumerate(labels):
        numbers[label].append(n)
    seconds = np.empty(len(labels))
    for label, where in numbers.items():
        task = _TASKS[label]
        seconds[where] = task.seconds * rng.lognormal(-(task.sigma**2) / 2, task.sigma, len(where))
    return seconds


def _fit(
    workload: Workload, heavy: NDArray[np.bool_], work: float, critical_path: float
) -> NDArray[np.float64]:
    """Scale times, by different factors, so that work and critical path have given lengths."""

    def scale(factor: float) -> NDArray[np.float64]:
        seconds = np.where(heavy, factor * workload.seconds, workload.seconds)
        return seconds * (work / seconds.sum())

    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = (low * high) ** 0.5
        if workload.remaining(scale(middle)).max() < critical_path:
            low = middle
        else:
            high = middle
    return scale(low)
