"""Options of ``spark-butler run``: those that ``pipetask run`` does not have, and the request they make.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["backend_options", "check_meaning", "engine_options", "input_repo_option", "make_request"]

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from lsst.ctrl.mpexec.cli.utils import collect_pipeline_actions
from lsst.ctrl.mpexec.showInfo import ShowInfo

from ..errors import OptionsError
from ..planning.request import RunRequest, build_request, refuse_action

_OPTIONS = (
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


_BACKEND = (
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


def engine_options[C: Callable[..., Any]](command: C) -> C:
    """Add the options of the engine to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def backend_options[C: Callable[..., Any]](command: C) -> C:
    """Add the options that choose where quanta run to a command."""
    for option in reversed(_BACKEND):
        command = option(command)
    return command


def make_request(
    ctx: click.Context,
    kwargs: dict[str, Any],
    *,
    default_pipeline: Path | None = None,
    on_spark: bool = True,
    command: Sequence[str] = (),
) -> RunRequest:
    """Build a request from the options of the command.

    Parameters
    ----------
    ctx
        Context of the command, which knows the order of pipeline options.
    command
        The command line, without secrets.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if an option, or a combination of options, can't be used.
    """
    try:
        kwargs = collect_pipeline_actions(ctx, **kwargs)
        show = ShowInfo(kwargs.pop("show") or [])
    except (TypeError, ValueError) as exc:
        raise refuse_action(exc) from exc
    check_meaning(kwargs, on_spark=on_spark)
    return build_request(kwargs, show=show, command=command, default_pipeline=default_pipeline)


def check_meaning(kwargs: dict[str, Any], *, on_spark: bool) -> None:
    """Check that no option of ``pipetask run`` was given that has no meaning here.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if one was given.
    """
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
