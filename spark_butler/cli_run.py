"""The command that runs a pipeline on Spark, with the options of ``pipetask run``."""

from __future__ import annotations

__all__ = ["make_run_command"]

import logging
import time
from pathlib import Path
from typing import Any

import click
import yaml
from lsst.ctrl.mpexec.cli.cmd.commands import PipetaskCommand
from lsst.ctrl.mpexec.cli.opt import run_options
from lsst.ctrl.mpexec.cli.utils import collect_pipeline_actions
from lsst.ctrl.mpexec.showInfo import ShowInfo
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.cli.opt import (
    log_file_option,
    log_label_option,
    log_level_option,
    log_tty_option,
    long_log_option,
)
from lsst.resources import ResourcePath
from lsst.utils.threads import disable_implicit_threading

from .backends import Backend, SerialBackend
from .config import RunOptions
from .engine import execute_graph, plan_graph
from .errors import EngineError, OptionsError, UserError
from .planning import RunRequest, brief, build_graph, prepare_output
from .report import make_report, summarize
from .session import make_session

logger = logging.getLogger(__name__)

_EPILOG = """Exit status: 0 when every quantum succeeded, 1 when some failed, 2 when nothing could be run.

Pipeline options (-t, --delete, -c, -C, --instrument) may appear multiple times;
all values are used, in order left to right.
"""


class _Refusal(click.ClickException):
    """One line on standard error and exit status 2."""

    exit_code = 2


def make_run_command(name: str = "run", default_pipeline: Path | None = None) -> click.Command:
    """Make the command.

    Parameters
    ----------
    name
        Name of the command.
    default_pipeline
        Pipeline to run when none is given.

    Returns
    -------
    command
        A click command with the options of ``pipetask run`` and its logging
        options, and with ``--temporary``, ``--dry-run`` and ``--backend``.
    """

    @click.command(
        name, cls=PipetaskCommand, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
    )
    @run_options()
    @click.option(
        "--temporary",
        metavar="PATTERN",
        multiple=True,
        help="Dataset types that match PATTERN are not retained: they pass from task to task in memory and "
        "never reach the repository. May be repeated.",
    )
    @click.option("--dry-run", is_flag=True, help="Print the plan and end; nothing is written.")
    @click.option(
        "--backend",
        type=click.Choice(["spark", "serial"]),
        default="spark",
        show_default=True,
        help="Where quanta run: on Spark, or one after another in this process.",
    )
    @log_level_option()  # type: ignore[untyped-decorator]
    @long_log_option()  # type: ignore[untyped-decorator]
    @log_file_option()  # type: ignore[untyped-decorator]
    @log_tty_option()  # type: ignore[untyped-decorator]
    @log_label_option()  # type: ignore[untyped-decorator]
    def command(ctx: click.Context, **kwargs: Any) -> None:
        """Build and run a pipeline on Spark."""
        try:
            _run(ctx, default_pipeline, **kwargs)
        except UserError as exc:
            logger.debug("Refused.", exc_info=True)
            raise _Refusal(brief(exc)) from exc

    for param in command.params:
        if param.name == "retained_dataset_types":
            assert isinstance(param, click.Option)
            param.multiple = True
            param.default = ()
            param.help = (
                "YAML file with a list of dataset type names or glob patterns to retain; all other outputs "
                "are temporary. A value that is no file is taken for a pattern. May be repeated."
            )
            param.metavar = "PATH|PATTERN"
            param.type = click.STRING
        elif param.name == "processes":
            param.default = None
            assert isinstance(param, click.Option)
            param.help = "Greatest number of quanta to run at once; by default as many as Spark has slots."
    return command


def _run(ctx: click.Context, default_pipeline: Path | None, **kwargs: Any) -> None:
    """Do what the command was asked for."""
    CliLog.initLog(
        longlog=kwargs.pop("long_log"),
        log_tty=kwargs.pop("log_tty"),
        log_file=kwargs.pop("log_file"),
        log_label=kwargs.pop("log_label"),
    )
    CliLog.setLogLevels(kwargs.pop("log_level"))
    kwargs = collect_pipeline_actions(ctx, **kwargs)
    if not kwargs["enable_implicit_threading"]:
        disable_implicit_threading()
    dry_run, backend_name = kwargs.pop("dry_run"), kwargs.pop("backend")
    has_task = any(action.action == "new_task" for action in kwargs["pipeline_actions"])
    if kwargs["pipeline"] is None and kwargs["qgraph"] is None and not has_task:
        if default_pipeline is None:
            raise OptionsError("Neither --pipeline, --task nor --qgraph was given.")
        kwargs["pipeline"] = str(default_pipeline)
    request = _make_request(kwargs)
    graph = build_graph(request)
    plan = plan_graph(graph, request.options)
    if dry_run:
        click.echo(plan.explain())
        return
    if request.show.handled:
        click.echo(
            "No pipeline executed. The --show option was given and all options were processed.", err=True
        )
        return
    logger.info("%s", plan.explain())
    backend = _make_backend(backend_name)
    with prepare_output(graph, request.arguments) as butler:
        if kwargs["init_only"]:
            return
        start = time.time()
        try:
            result = execute_graph(graph, butler, backend, request.options)
        except EngineError as exc:
            logger.debug("The engine failed.", exc_info=True)
            raise click.ClickException(brief(exc)) from exc
    click.echo(summarize(graph, result, wall_seconds=time.time() - start, n_ingested=result.n_ingested))
    if summary := kwargs.get("summary"):
        with ResourcePath(summary).open("w") as stream:
            stream.write(make_report(graph, result).model_dump_json(exclude_none=True, indent=2))
    if result.failed:
        ctx.exit(1)


def _make_request(kwargs: dict[str, Any]) -> RunRequest:
    """Take the options of the engine from those of the command."""
    if kwargs["extend_run"]:
        kwargs["skip_existing"] = True
    options = RunOptions(
        temporary=kwargs.pop("temporary"),
        retained_dataset_types=_read_retained(kwargs.pop("retained_dataset_types")),
        processes=kwargs.pop("processes"),
        timeout=kwargs.pop("timeout"),
        fail_fast=kwargs.pop("fail_fast"),
        skip_existing=kwargs["skip_existing"],
        # As in pipetask, there is nothing to clobber in a new run.
        clobber_outputs=kwargs["clobber_outputs"] and kwargs["extend_run"],
        raise_on_partial_outputs=kwargs.pop("raise_on_partial_outputs"),
        cores_per_quantum=kwargs.pop("cores_per_quantum"),
        memory_per_quantum=kwargs.pop("memory_per_quantum") or "",
        debug=kwargs.pop("debug"),
    )
    return RunRequest(kwargs, options, ShowInfo(kwargs.pop("show") or []))


def _read_retained(values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Read the patterns of dataset types to retain."""
    if not values:
        return None
    patterns: list[str] = []
    for value in values:
        if not Path(value).is_file():
            patterns.append(value)
            continue
        content = yaml.safe_load(Path(value).read_text())
        if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
            raise OptionsError(
                f"--retained-dataset-types file {value!r} must contain a non-empty YAML sequence of strings."
            )
        patterns.extend(content)
    return tuple(patterns)


def _make_backend(name: str) -> Backend:
    """Make the backend that was asked for."""
    if name == "serial":
        return SerialBackend()
    from .backends.spark import SparkBackend

    return SparkBackend(make_session())
