"""Memory and times of quanta in earlier runs, in files under the datastore's root.  Runs in the driver."""

from __future__ import annotations

__all__ = [
    "Times",
    "find_costs",
    "find_task_means",
    "find_times",
    "load_needs",
    "load_peaks",
    "load_times",
    "save_needs",
    "save_peaks",
    "save_times",
]

import contextlib
import itertools
import json
import logging
import statistics
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import networkx
from lsst.daf.butler import DataCoordinate
from lsst.resources import ResourcePath

from ..atomic_write import write_at_once
from ..model.outcomes import FailureKind, QuantumOutcome
from ..text import best_effort

type Times = Mapping[tuple[str, str], float]
"""Times of quanta in seconds, by task label and the values of the data ID with commas between them."""

logger = logging.getLogger(__name__)

# Factor on recorded memory: the next interpreter may have imported more modules.
_MARGIN = 1.2
_MEMORY = "spark-butler-learned/memory.json"
_TIMES = "spark-butler-learned/times.json"
_PEAKS = "spark-butler-learned/peaks.json"
_WORTH_SECONDS = 60.0
_MOST_QUANTA = 100_000


def load_needs(root: ResourcePath) -> dict[str, int]:
    """Read the bytes that tasks needed in earlier runs; empty if there are none or the file can't be read."""
    return _load(root, _MEMORY, lambda content: {label: int(value) for label, value in content.items()})


def save_needs(root: ResourcePath, outcomes: Iterable[QuantumOutcome]) -> None:
    """Add the bytes that were enough for tasks whose quanta had run out of memory to the records."""
    needs: dict[str, int] = {}
    for outcome in outcomes:
        had_too_little = any(attempt.kind is FailureKind.MEMORY for attempt in outcome.attempts)
        if had_too_little and outcome.memory_limit is not None:
            enough = max(outcome.memory_limit, int(_MARGIN * outcome.peak_memory))
            needs[outcome.label] = max(needs.get(outcome.label, 0), enough)
    if not needs:
        return
    known = load_needs(root)
    known.update((label, max(nbytes, known.get(label, 0))) for label, nbytes in needs.items())
    if not _save(root, _MEMORY, known):
        return
    for label, nbytes in needs.items():
        logger.info(
            "Task %s was given %d MiB in the end; the next run begins with it.", label, nbytes // 2**20
        )


def find_times(outcomes: Iterable[tuple[QuantumOutcome, DataCoordinate]]) -> Times:
    """Return the wall times of the quanta that ran and succeeded.

    Empty if they took less than a minute together: their order makes no difference then.
    """
    times = {
        _key(outcome.label, data_id): float(f"{outcome.wall_seconds:.3g}")
        for outcome, data_id in outcomes
        if outcome.succeeded and not (outcome.recovered or outcome.skipped_existing)
    }
    return times if sum(times.values()) >= _WORTH_SECONDS else {}


def load_peaks(root: ResourcePath) -> dict[str, float]:
    """Read the mean peak memory of a quantum of each task in its last run, in bytes by label."""
    return _load(root, _PEAKS, lambda content: {label: float(value) for label, value in content.items()})


def save_peaks(root: ResourcePath, outcomes: Iterable[QuantumOutcome]) -> None:
    """Write the mean peak memory of a quantum of each task, and keep the records of earlier runs."""
    peaks: defaultdict[str, list[int]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.succeeded and outcome.peak_memory and not outcome.skipped_existing:
            peaks[outcome.label].append(outcome.peak_memory)
    if peaks:
        _save(root, _PEAKS, load_peaks(root) | {label: statistics.fmean(n) for label, n in peaks.items()})


def find_costs(xgraph: networkx.DiGraph[uuid.UUID], times: Times) -> dict[uuid.UUID, float]:
    """Return how many seconds quanta will take, for an order by the longest remaining path.

    A quantum without a time in its last run gets the median of the others; empty if no time is known.
    """
    keys = {
        quantum_id: _key(node["task_label"], node["data_id"]) for quantum_id, node in xgraph.nodes.items()
    }
    known = {quantum_id: times[key] for quantum_id, key in keys.items() if key in times}
    return dict.fromkeys(keys, statistics.median(known.values())) | known if known else {}


def find_task_means(times: Times) -> dict[str, float]:
    """Return the mean time of the quanta of each task, in seconds by label."""
    by_label: defaultdict[str, list[float]] = defaultdict(list)
    for (label, _), seconds in times.items():
        by_label[label].append(seconds)
    return {label: statistics.fmean(seconds) for label, seconds in by_label.items()}


def load_times(root: ResourcePath) -> Times:
    """Read the last wall times of quanta; empty if there are none or the file can't be read."""

    def read(content: Mapping[str, Any]) -> dict[tuple[str, str], float]:
        # Earlier releases kept the mean time of a task beside its quanta.
        return {
            (label, key): float(seconds)
            for label, task in content.items()
            for key, seconds in task["quanta"].items()
        }

    return _load(root, _TIMES, read)


def save_times(root: ResourcePath, times: Times) -> None:
    """Add the times of quanta to those of earlier runs; keep at most 100,000 quanta."""
    if not times:
        return
    older = {key: seconds for key, seconds in load_times(root).items() if key not in times}
    content: defaultdict[str, dict[str, dict[str, float]]] = defaultdict(lambda: {"quanta": {}})
    for (label, key), seconds in itertools.islice(
        itertools.chain(times.items(), older.items()), _MOST_QUANTA
    ):
        content[label]["quanta"][key] = seconds
    _save(root, _TIMES, content, indent=None)


def _key(label: str, data_id: DataCoordinate) -> tuple[str, str]:
    """Return the key of a quantum in `Times`."""
    return label, ",".join(map(str, data_id.required_values))


def _load[K, V](root: ResourcePath, file: str, read: Callable[[Mapping[str, Any]], dict[K, V]]) -> dict[K, V]:
    """Read a file with values by task label; return an empty mapping if it can't be read."""
    # No result depends on the history.
    with (
        best_effort(f"The history of earlier runs ({file}) can't be read"),
        contextlib.suppress(FileNotFoundError),
    ):
        return read(json.loads(root.join(file).read()))
    return {}


def _save(root: ResourcePath, file: str, content: Mapping[str, Any], *, indent: int | None = 2) -> bool:
    """Write values by task label, and return whether this was possible."""
    # The run itself has succeeded.
    with best_effort(f"The history of this run ({file}) can't be written"):
        write_at_once(root.join(file), json.dumps(content, indent=indent, sort_keys=True).encode())
        return True
    return False
