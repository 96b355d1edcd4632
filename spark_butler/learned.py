"""What runs have found out about the memory that tasks need, kept beside them in the datastore."""

from __future__ import annotations

__all__ = ["find_needs", "load_needs", "save_needs"]

import json
import logging
from collections.abc import Iterable, Mapping

from lsst.resources import ResourcePath

from .failures import FailureKind
from .messages import brief
from .outcomes import QuantumOutcome

logger = logging.getLogger(__name__)

# The next interpreter may be larger by what it has imported.
_MARGIN = 1.2
_FILE = "spark-butler-learned/memory.json"


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
    """Read what earlier runs have found out.

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
        content = json.loads(root.join(_FILE).read())
        return {str(label): int(nbytes) for label, nbytes in content.items()}
    except FileNotFoundError:
        return {}
    except Exception as exc:  # noqa: BLE001  (it only costs another attempt)
        logger.warning("What earlier runs learned about memory can't be read: %s", brief(exc))
        return {}


def save_needs(root: ResourcePath, needs: Mapping[str, int]) -> None:
    """Add to what earlier runs have found out.

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
    try:
        root.join(_FILE).write(json.dumps(known, indent=2, sort_keys=True).encode())
    except Exception as exc:  # noqa: BLE001  (the run itself has succeeded)
        logger.warning("What this run learned about memory can't be kept: %s", brief(exc))
        return
    for label, nbytes in needs.items():
        logger.info(
            "Task %s was given %d MiB in the end; the next run begins with it.", label, nbytes // 2**20
        )
