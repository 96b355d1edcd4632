"""Options of ``run`` that ``pipetask run`` lacks, and checks of those that it has.  Runs in the driver."""

from __future__ import annotations

__all__ = ["backend_options", "check_meaning", "engine_options", "input_repo_option"]

import importlib.util
from typing import Any

import click

from ..errors import OptionsError
from .command import join_options

engine_options = join_options(
    click.option(
        "--temporary",
        metavar="PATTERN",
        multiple=True,
        help="Dataset types that match PATTERN are temporary: they pass from task to task in memory and "
        "never reach the repository; 'auto' stands for all types that are made and read inside the graph. "
        "May be repeated.",
    ),
    click.option(
        "--store",
        metavar="PATTERN|FILE",
        multiple=True,
        help="Store only dataset types that match PATTERN, or a pattern of the list in a YAML FILE; all "
        "other outputs are temporary, except metadata, logs and init-outputs. May be repeated.",
    ),
    click.option(
        "--group-by",
        metavar="auto|fused|DIM[,DIM...]",
        default="auto",
        show_default=True,
        help="Which quanta one worker runs in order: those with the same values of DIM, those that feed "
        "each other one to one (fused), or the largest groups that keep every slot busy (auto).",
    ),
    click.option(
        "--isolation",
        type=click.Choice(["group", "quantum", "none"]),
        default="group",
        show_default=True,
        help="Scope of a process forked from a warm worker: a group of quanta (a new process continues the "
        "group if one died); a quantum (each is a group of its own if there are temporaries); or none, "
        "without limits on memory and time.",
    ),
    click.option(
        "--retries",
        metavar="N",
        type=int,
        help="Number of retries of a quantum after a transient failure: an error of the object store, a lost "
        "process, or too little memory.  By default 2.",
    ),
    click.option(
        "--resources",
        metavar="FILE",
        help="YAML file with requestMemory, memoryMultiplier, memoryLimit, numberOfRetries (as in ctrl_bps) "
        "and timeout for all tasks, and under pipetask for single tasks by label.",
    ),
    click.option(
        "--max-failures",
        metavar="N|N%",
        help="Stop the run when N quanta, or N percent of all quanta, have failed.",
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
        help="File to write the provenance quantum graph of the run to, for `butler provenance-report` and "
        "`butler ingest-graph`; its name ends in .qg; can be a URI.",
    ),
    click.option(
        "--take-over",
        is_flag=True,
        help="Take the output RUN over from another driver that has given no sign of life for a minute; "
        "the other driver, should it live, registers nothing more.",
    ),
    click.option(
        "--progress/--no-progress",
        default=None,
        help="Whether to draw a bar for each task; by default where standard error is a terminal.",
    ),
)


backend_options = join_options(
    click.option("--dry-run", is_flag=True, help="Print the plan and end; nothing is written."),
    click.option(
        "--backend",
        type=click.Choice(["spark", "serial"]),
        default="spark",
        show_default=True,
        help="Backend of quanta: Spark, or one after another in this process.",
    ),
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Port on which the driver serves metrics of the run for Prometheus.",
    ),
    click.option(
        "--metrics-file",
        metavar="FILE",
        help="File to write the same to every 10 s, for the textfile collector of a node exporter.",
    ),
    click.option(
        "--price",
        metavar="CORE_HOUR,GB_HOUR",
        help="Money for a core-hour and for a GB-hour, for the expected usage in a plan.",
    ),
)


input_repo_option = click.option(
    "--input-repo",
    metavar="URI",
    help="Repository, or Butler server, that has the inputs; it is only read. Workers copy the inputs that "
    "the repository of -b lacks into it, and the run is made there.",
)


def check_meaning(kwargs: dict[str, Any], *, on_spark: bool) -> None:
    """Refuse the options of ``pipetask run`` that have no meaning here."""
    if kwargs["pdb"]:
        raise OptionsError("--pdb works only in the process of a terminal; use `pipetask run --pdb -j 1`.")
    if kwargs["start_method"]:
        raise OptionsError(
            f"--start-method {kwargs['start_method']} has no meaning: quanta run in processes forked from "
            "workers of Spark."
        )
    for name in ("profile", "coverage"):
        if kwargs[name] and on_spark:
            raise OptionsError(
                f"--{name} measures only this process, and quanta run in workers of Spark; "
                f"give --backend serial with --{name}."
            )
    if kwargs["coverage"] and importlib.util.find_spec("coverage") is None:
        raise OptionsError("--coverage needs the package `coverage`, which is not installed.")
