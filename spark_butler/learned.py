"""What runs have found out about the memory and time that tasks need, kept beside them in the datastore."""

from __future__ import annotations

__all__ = [
    "NO_TIMES",
    "Times",
    "find_needs",
    "find_times",
    "load_needs",
    "load_times",
    "save_needs",
    "save_times",
]

import dataclasses
import json
import logging
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lsst.daf.butler import DataCoordinate
from lsst.resources import ResourcePath

from .failures import FailureKind
from .messages import brief
from .outcomes import QuantumOutcome

logger = logging.getLogger(__name__)

# The next interpreter may be larger by what it has imported.
_MARGIN = 1.2
_MEMORY = "spark-butler-learned/memory.json"
_TIMES = "spark-butler-learned/times.json"
_WORTH_SECONDS = 60.0
_MOST_QUANTA = 100_000


def find_needs(outcomes: Iterable[QuantumOutcome]) -> dict[str, int]:
    """Find out from quanta that had too little memory at first how much was enough.

    Parameters
    ----------
    outcomes
        Outcomes of a run.

    Returns
    -------
    needs
        Bytes, by task label; for the tasks only of which a quantum had too
        little.
    """
    needs: dict[str, int] = {}
    for outcome in outcomes:
        label = outcome.report.taskLabel
        if label is None or outcome.memory_limit is None:
            continue
        if any(attempt.kind is FailureKind.MEMORY for attempt in outcome.attempts):
            enough = max(outcome.memory_limit, int(_MARGIN * outcome.peak_memory))
            needs[label] = max(needs.get(label, 0), enough)
    return needs


def load_needs(root: ResourcePath) -> dict[str, int]:
    """Read what earlier runs have found out about memory.

    Parameters
    ----------
    root
        Root of the datastore.

    Returns
    -------
    needs
        Bytes, by task label; empty where nothing was found out, or where it
        can't be read.
    """
    try:
        return {label: int(nbytes) for label, nbytes in _load(root, _MEMORY).items()}
    except (TypeError, ValueError) as exc:
        logger.warning("What earlier runs learned (%s) can't be read: %s", _MEMORY, brief(exc))
        return {}


def save_needs(root: ResourcePath, needs: Mapping[str, int]) -> None:
    """Add to what earlier runs have found out about memory.

    Parameters
    ----------
    root
        Root of the datastore.
    needs
        Bytes, by task label.
    """
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


@dataclasses.dataclass(frozen=True)
class Times:
    """How long quanta took when they ran last."""

    means: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Mean times in seconds, by task label."""

    quanta: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Times in seconds of single quanta, by task label and data ID, as `describe` writes it."""

    @staticmethod
    def describe(data_id: DataCoordinate) -> str:
        """Write a data ID as a key.

        Parameters
        ----------
        data_id
            The data ID.
        """
        return ",".join(map(str, data_id.required_values))

    def of(self, label: str, data_id: DataCoordinate) -> float | None:
        """Say how long a quantum will probably take, in seconds; `None` where its task is not known.

        Parameters
        ----------
        label
            Label of its task.
        data_id
            Its data ID.
        """
        quanta = self.quanta.get(label)
        own = quanta.get(self.describe(data_id)) if quanta else None
        return self.means.get(label) if own is None else own

    def __or__(self, newer: Times) -> Times:
        quanta: dict[str, dict[str, float]] = {}
        room = _MOST_QUANTA
        for times in (newer, self):
            for label, seconds in times.quanta.items():
                kept = quanta.setdefault(label, {})
                fresh = [(key, value) for key, value in seconds.items() if key not in kept][:room]
                kept.update(fresh)
                room -= len(fresh)
        return Times({**self.means, **newer.means}, quanta)


NO_TIMES = Times()
"""Nothing is known."""


def find_times(outcomes: Iterable[tuple[QuantumOutcome, DataCoordinate]]) -> Times:
    """Find out how long quanta took.

    Parameters
    ----------
    outcomes
        Outcomes of a run, and the data IDs of their quanta.

    Returns
    -------
    times
        Their times.  Nothing where all took less than a minute together:
        their order makes no difference.
    """
    quanta: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for outcome, data_id in outcomes:
        if outcome.succeeded and not (outcome.recovered or outcome.skipped_existing):
            seconds = float(f"{outcome.wall_seconds:.3g}")
            quanta[outcome.report.taskLabel or ""][Times.describe(data_id)] = seconds
    if sum(sum(each.values()) for each in quanta.values()) < _WORTH_SECONDS:
        return NO_TIMES
    return Times({label: statistics.fmean(each.values()) for label, each in quanta.items()}, quanta)


def load_times(root: ResourcePath) -> Times:
    """Read how long quanta took when they ran last.

    Parameters
    ----------
    root
        Root of the datastore.

    Returns
    -------
    times
        Their times; nothing where they can't be read.
    """
    content = _load(root, _TIMES)
    try:
        return Times(
            {label: float(each["mean"]) for label, each in content.items() if each["mean"] > 0},
            {label: dict(each["quanta"]) for label, each in content.items()},
        )
    except (TypeError, KeyError, ValueError) as exc:
        logger.warning("What earlier runs learned (%s) can't be read: %s", _TIMES, brief(exc))
        return NO_TIMES


def save_times(root: ResourcePath, times: Times) -> None:
    """Keep how long quanta took, of the last 100,000 of them singly.

    Parameters
    ----------
    root
        Root of the datastore.
    times
        Their times.
    """
    if not times.means:
        return
    known = load_times(root) | times
    content = {
        label: {"mean": float(f"{mean:.3g}"), "quanta": known.quanta.get(label, {})}
        for label, mean in known.means.items()
    }
    _save(root, _TIMES, content, indent=None)


def _load(root: ResourcePath, file: str) -> dict[str, Any]:
    """Read what is known by task label; nothing where that can't be done."""
    try:
        return dict(json.loads(root.join(file).read()))
    except FileNotFoundError:
        return {}
    except Exception as exc:  # noqa: BLE001  (nothing depends on it)
        logger.warning("What earlier runs learned (%s) can't be read: %s", file, brief(exc))
        return {}


def _save(root: ResourcePath, file: str, content: Mapping[str, Any], *, indent: int | None = 2) -> bool:
    """Write what is known by task label, and return whether it could be done."""
    try:
        root.join(file).write(json.dumps(content, indent=indent, sort_keys=True).encode())
    except Exception as exc:  # noqa: BLE001  (the run itself has succeeded)
        logger.warning("What this run learned (%s) can't be kept: %s", file, brief(exc))
        return False
    return True
