"""JSON that the run command prints at its end.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["describe_run"]

from collections.abc import Mapping
from typing import Any

from ..report import RunReporter

_COUNTS = ("quanta", "done_before", "done", "no_work", "failed", "blocked", "not_run", "retried")
_OF_FAILURE = ("task", "data_id", "kind", "reason", "attempts", "rerun")


def describe_run(reporter: RunReporter, run: str, state: str, status: int) -> dict[str, Any]:
    """Return the description of an ended run, with the keys of its report.

    Parameters
    ----------
    reporter
        Reporter of the run.
    run
        The output RUN collection.
    state
        State of the run, if there is no report.
    status
        Exit status of the command.

    Returns
    -------
    description
        The description, as `json.dumps` takes it.
    """
    description: dict[str, Any] = {"run": run, "state": state, "exit_status": status}
    if (content := reporter.content) is not None:
        description |= {
            "state": content["state"],
            "reason": content["reason"],
            "seconds": content["seconds"],
            "time": content["time"]["driver"],
            "totals": _count(content["totals"]),
            "tasks": [{"label": task["label"], **_count(task)} for task in content["tasks"]],
            "n_ingested": content["totals"]["ingested"],
            "failures": [{name: each[name] for name in _OF_FAILURE} for each in content["failures"]],
            "resume": content["resume"],
        }
    return description | {"reports": [str(uri) for uri in reporter.places]}


def _count(content: Mapping[str, Any]) -> dict[str, int]:
    return {name: content[name] for name in _COUNTS}
