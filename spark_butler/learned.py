"""What runs have found out about the memory and time that tasks need, kept beside them in the datastore."""

from __future__ import annotations

__all__ = ["find_needs", "find_times", "load_needs", "load_times", "save_needs", "save_times"]

import json
import logging
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping

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
    return {label: int(nbytes) for label, nbytes in _load(root, _MEMORY).items()}


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


def find_times(outcomes: Iterable[QuantumOutcome]) -> dict[str, float]:
    """Find out how long the quanta of tasks take.

    Parameters
    ----------
    outcomes
        Outcomes of a run.

    Returns
    -------
    times
        Mean times in seconds, by task label.  Empty where all quanta took
        less than a minute together: their order makes no difference.
    """
    times: defaultdict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.succeeded and not (outcome.recovered or outcome.skipped_existing):
            times[outcome.report.taskLabel or ""].append(outcome.wall_seconds)
    if sum(map(sum, times.values())) < _WORTH_SECONDS:
        return {}
    return {label: statistics.fmean(each) for label, each in times.items()}


def load_times(root: ResourcePath) -> dict[str, float]:
    """Read how long the quanta of tasks took when they ran last.

    Parameters
    ----------
    root
        Root of the datastore.

    Returns
    -------
    times
        Mean times in seconds, by task label; empty where none are known, or
        where they can't be read.
    """
    return {label: seconds for label, seconds in _load(root, _TIMES).items() if seconds > 0}


def save_times(root: ResourcePath, times: Mapping[str, float]) -> None:
    """Keep how long the quanta of tasks took.

    Parameters
    ----------
    root
        Root of the datastore.
    times
        Mean times in seconds, by task label.
    """
    if times:
        known = load_times(root)
        rounded = {label: float(f"{seconds:.3g}") for label, seconds in times.items()}
        if known | rounded != known:
            _save(root, _TIMES, known | rounded)


def _load(root: ResourcePath, file: str) -> dict[str, float]:
    """Read numbers by task label; none where that can't be done."""
    try:
        content = json.loads(root.join(file).read())
        return {str(label): float(value) for label, value in content.items()}
    except FileNotFoundError:
        return {}
    except Exception as exc:  # noqa: BLE001  (nothing depends on it)
        logger.warning("What earlier runs learned (%s) can't be read: %s", file, brief(exc))
        return {}


def _save(root: ResourcePath, file: str, content: Mapping[str, float]) -> bool:
    """Write numbers by task label, and return whether it could be done."""
    try:
        root.join(file).write(json.dumps(content, indent=2, sort_keys=True).encode())
    except Exception as exc:  # noqa: BLE001  (the run itself has succeeded)
        logger.warning("What this run learned (%s) can't be kept: %s", file, brief(exc))
        return False
    return True
