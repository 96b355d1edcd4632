"""The options of the run command that ``pipetask run`` does not have."""

from __future__ import annotations

__all__ = ["engine_options"]

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--temporary",
        metavar="PATTERN",
        multiple=True,
        help="Dataset types that match PATTERN are temporary: they pass from task to task in memory and "
        "never reach the repository; 'auto' stands for all that is made and read inside the graph. May be "
        "repeated.",
    ),
    click.option(
        "--store",
        metavar="PATTERN|FILE",
        multiple=True,
        help="Store only dataset types that match PATTERN, or a pattern of the list in a YAML FILE; all "
        "other outputs are temporary, but metadata, logs and init-outputs. May be repeated.",
    ),
    click.option(
        "--group-by",
        metavar="auto|fused|quantum|DIM[,DIM...]",
        default="auto",
        show_default=True,
        help="Which quanta one worker runs in order: those of the same dimensions, those joined by narrow "
        "edges (fused), each for itself (quantum), or the coarsest that keeps every slot busy (auto).",
    ),
    click.option(
        "--max-shuffle-bytes",
        metavar="BYTES",
        type=int,
        help="Size of a temporary from which on it waits in the object store and not in Spark.",
    ),
    click.option(
        "--isolation",
        type=click.Choice(["group", "quantum", "none"]),
        default="group",
        show_default=True,
        help="What gets a process of its own, forked from a warm worker: a group of quanta, of which a new "
        "process goes on where one died; each quantum; or nothing, without limits on memory and time.",
    ),
    click.option(
        "--retries",
        metavar="N",
        type=int,
        help="How many times to try a quantum again that may have failed by chance: by an error of the "
        "object store, a lost process, or too little memory.  By default 2.",
    ),
    click.option(
        "--resources",
        metavar="FILE",
        help="YAML file with requestMemory, memoryMultiplier, memoryLimit, numberOfRetries (as in ctrl_bps) "
        "and timeout for all tasks, and under pipetask for single ones by label.",
    ),
    click.option(
        "--max-failures",
        metavar="N|N%",
        help="Stop the run when N quanta, or N percent of all, have failed.",
    ),
    click.option(
        "--max-same-failures",
        metavar="N",
        type=int,
        help="Stop the run when N quanta of a task in a row have failed with the same message.",
    ),
    click.option(
        "--provenance-graph",
        metavar="FILE",
        help="Where to write the provenance quantum graph of the run, for `butler provenance-report` and "
        "`butler ingest-graph`: a name that ends in .qg; can be a URI.",
    ),
    click.option(
        "--report",
        metavar="DIR",
        help="Folder for a copy of the run's report, report.html and report.json; can be a URI. The report "
        "itself is kept beside the datasets, see `spark-butler report`.",
    ),
    click.option(
        "--progress/--no-progress",
        default=None,
        help="Whether to draw a bar for each task; by default where standard error is a terminal.",
    ),
)


def engine_options[C: Callable[..., Any]](command: C) -> C:
    """Add the options of the engine to a command.

    Parameters
    ----------
    command
        The function of the command.
    """
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
