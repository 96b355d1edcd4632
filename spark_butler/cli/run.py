"""Command that runs a pipeline on Spark, with the options of ``pipetask run``.  Runs in the driver."""

from __future__ import annotations

__all__ = ["make_run_command"]

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import lsst.utils.timer
from lsst.ctrl.mpexec.cli.cmd.commands import PipetaskCommand, coverage_context
from lsst.ctrl.mpexec.cli.opt import run_options
from lsst.daf.butler import Config
from lsst.daf.butler.cli.utils import yaml_presets
from lsst.resources import ResourcePath
from lsst.utils.threads import disable_implicit_threading

from ..errors import EngineError, NothingToDo, OptionsError, UserError
from ..planning.request import RunRequest
from ..report import RunReporter, clean_command, format_report
from ..report.summary import make_report
from ..run import ActiveRun, OnlyShown, open_run, prepare
from ..spark.session import check_platform
from ..spark.startup import SparkStart
from ..text import brief
from .command import (
    CONTEXT,
    Refusal,
    check_encoding,
    format_option,
    kept_logging_arguments,
    one_line_errors,
    print_json,
    print_line,
)
from .ending import describe_run
from .logging_options import logging_options, start_logging
from .run_options import engine_options, make_request
from .signals import Stopped, end_in_order, ending_on_signals

if TYPE_CHECKING:
    from ..driver.backend import Backend
    from ..spark.backend import SparkBackend

logger = logging.getLogger(__name__)

_COMMAND_KEY = "spark_butler.command"

_EPILOG = """{examples}

Exit status: 0 when every quantum succeeded, 1 when some failed, 2 when nothing could be run,
130 and 143 when a signal ended the run.

Pipeline options (-t, --delete, -c, -C, --instrument) may appear multiple times;
all values are used, in order left to right.
"""

_EXAMPLES = {
    "plan": """\b
Examples:
  spark-butler plan -b s3-repo -p pipeline.yaml -i SimCam/defaults -o u/me/first -d "visit = 42"
  spark-butler plan -b s3-repo -g night.qg --output-run u/me/night --temporary auto --group-by visit
  spark-butler plan -@ night.yaml --format json | jq .crossings""",
    "run": """\b
Examples:
  spark-butler run -b s3-repo -p pipeline.yaml -i SimCam/defaults -o u/me/first -d "visit = 42"
  spark-butler run -b s3-repo -p pipeline.yaml -i SimCam/defaults -o u/me/first --temporary auto
  spark-butler run -b s3-repo -p pipeline.yaml -o u/me/first --extend-run --skip-existing
  spark-butler run -@ night.yaml --format json | jq .totals.failed""",
    "process_ccd.py": """\b
Example:
  spark-submit jobs/process_ccd.py -b s3-repo -i SimCam/defaults -o u/me/first --temporary auto""",
}


class _Breakdown(Refusal):
    """One line on standard error and exit status 1."""

    exit_code = 1


class _RunCommand(PipetaskCommand):
    """A command that ends with exit status 2 for every error in its arguments.

    It reads the options files (``-@``) that were made for ``pipetask run``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Logging options may also precede the name of the command.
        args = [*kept_logging_arguments(ctx), *args]
        ctx.meta[_COMMAND_KEY] = list(args)
        with one_line_errors(ctx):
            check_encoding(args)
            parsed: list[str] = super().parse_args(ctx, args)
            return parsed


def _read_options_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Read the defaults of other options from the section ``plan`` or ``run`` of a file."""
    if value is None:
        return
    name, section = ctx.info_name, "run"
    if name == "plan":
        with contextlib.suppress(Exception):
            # Errors of the file are reported below.
            section = name if name in Config(value) else section
    ctx.info_name = section
    try:
        yaml_presets(ctx, "options_file", value)
    finally:
        ctx.info_name = name


def make_run_command(
    name: str = "run", default_pipeline: Path | None = None, *, only_plan: bool = False
) -> click.Command:
    """Build the command.

    Parameters
    ----------
    name
        Name of the command.
    default_pipeline
        Pipeline to run when none is given.
    only_plan
        Whether the command prints the plan and ends, as with ``--dry-run``.

    Returns
    -------
    command
        A click command with the options of ``pipetask run`` and its logging
        options, and with ``--temporary``, ``--dry-run`` and ``--backend``.
    """

    @click.command(
        name,
        cls=_RunCommand,
        epilog=_EPILOG.format(examples=_EXAMPLES[name]),
        context_settings=CONTEXT,
    )
    @run_options()
    @engine_options
    @click.option("--dry-run", is_flag=True, help="Print the plan and end; nothing is written.")
    @click.option(
        "--backend",
        type=click.Choice(["spark", "serial"]),
        default="spark",
        show_default=True,
        help="Backend of quanta: Spark, or one after another in this process.",
    )
    @format_option
    @logging_options
    def command(ctx: click.Context, **kwargs: Any) -> None:
        """Build and run a pipeline on Spark."""
        kwargs["dry_run"] = kwargs["dry_run"] or only_plan
        try:
            status = _run(ctx, default_pipeline, **kwargs)
        except UserError as exc:
            logger.debug("Refused.", exc_info=True)
            raise Refusal(brief(exc)) from exc
        except EngineError as exc:
            logger.debug("The engine failed.", exc_info=True)
            raise _Breakdown(f"The engine failed: {brief(exc)}") from exc
        except KeyboardInterrupt:
            print_line("Stopped by SIGINT before any quantum ran.")
            status = 128 + signal.SIGINT
        ctx.exit(status)

    if only_plan:
        command.help = "Build a pipeline's quantum graph and print how it would run; nothing is written."
    for param in command.params:
        if param.name == "options_file":
            param.callback = _read_options_file
        elif param.name == "processes":
            param.default = None
            assert isinstance(param, click.Option)
            param.help = "Greatest number of quanta to run at once; by default as many as Spark has slots."
    return command


def _run(ctx: click.Context, default_pipeline: Path | None, **kwargs: Any) -> int:
    """Run the command and return its exit status."""
    start_logging(kwargs)
    dry_run, backend_name = kwargs.pop("dry_run"), kwargs.pop("backend")
    bars, as_json = kwargs.pop("progress"), kwargs.pop("form") == "json"
    if as_json and kwargs["show"]:
        raise OptionsError("--show prints for people; it can't be combined with --format json.")
    on_spark = backend_name == "spark"
    request = make_request(
        ctx, kwargs, default_pipeline=default_pipeline, on_spark=on_spark, command=_command_line(ctx)
    )
    further = request.graph_builder
    if not further["enable_implicit_threading"]:
        disable_implicit_threading()
    with contextlib.ExitStack() as stack:
        stack.enter_context(coverage_context(dict(further)))
        if on_spark:
            check_platform()
        needs_spark = on_spark and not dry_run and not request.init_only
        workers = _Workers(stack, needs_spark=needs_spark, slots=request.options.processes)
        try:
            prepared = prepare(
                request,
                slots=workers.slots,
                start_workers=workers.start if needs_spark else None,
                dry_run=dry_run,
            )
        except OnlyShown as exc:
            _print_unhandled(request)
            print_line(f"{exc} The --show option was given and all options were processed.")
            return 0
        except NothingToDo as exc:
            if as_json:
                print_json(
                    {"run": request.output_run, "state": "succeeded", "reason": str(exc), "exit_status": 0}
                )
            else:
                print_line(str(exc))
            return 0
        _print_unhandled(request)
        if dry_run:
            print_json(prepared.plan.describe()) if as_json else click.echo(prepared.plan.explain())
            return 0
        logger.info("%s", prepared.plan.explain())
        if request.options.debug:
            _import_debug()
        bars = sys.stderr.isatty() if bars is None else bars
        active = stack.enter_context(open_run(prepared, workers.backend(), on_cancel=end_in_order, bars=bars))
        if request.init_only:
            if as_json:
                print_json({"run": active.name, "state": "initialized", "exit_status": 0})
            return 0
        stack.enter_context(lsst.utils.timer.profile(further["profile"], logger))
        return _drive(active, summary=further["summary"], as_json=as_json)


def _drive(active: ActiveRun, *, summary: str | None, as_json: bool) -> int:
    """Run all quanta, print the summary, and return the exit status."""
    reporter = active.reporter
    try:
        end = active.drive(guard=ending_on_signals())
    except Stopped as exc:
        by = "`spark-butler cancel`" if reporter.cancelled else exc.number.name
        how_to_resume = active.explain_resume()
        active.finish("stopped", f"Stopped by {by}.")
        status = 128 + exc.number
        if as_json:
            print_json(describe_run(reporter, active.name, "stopped", status))
        _print_report_location(reporter)
        print_line(f"Stopped by {by}. {how_to_resume}")
        return status
    except EngineError:
        print_line(active.explain_resume())
        _print_report_location(reporter)
        if as_json:
            print_json(describe_run(reporter, active.name, "broken", 1))
        raise
    result, graph = end.result, active.prepared.graph
    active.finish(end.state, end.reason, n_ingested=result.n_ingested)
    if not as_json and reporter.content is not None:
        click.echo(format_report(reporter.content))
    if summary:
        with ResourcePath(summary).open("w") as stream:
            stream.write(make_report(graph, result).model_dump_json(exclude_none=True, indent=2))
    status = 1 if result.failed or end.unwritten is not None else 0
    if as_json:
        print_json(describe_run(reporter, active.name, end.state, status))
    elif reporter.places:
        click.echo(f"The report is in {reporter.places[0]}.")
    if end.unwritten is not None:
        raise end.unwritten
    return status


class _Workers:
    """Workers of a run: Spark, started in the background, or this process.

    Parameters
    ----------
    stack
        Stops Spark at the end.
    needs_spark
        Whether quanta run on Spark.
    slots
        Number of groups to run at once, if given.
    """

    def __init__(self, stack: contextlib.ExitStack, *, needs_spark: bool, slots: int | None):
        self._stack = stack
        self._needs_spark = needs_spark
        self._slots = slots
        self._start: SparkStart | None = None
        self._backend: Backend | None = None

    def start(self, modules: Sequence[str], stores: Sequence[str]) -> None:
        """Start Spark in the background."""
        self._start = self._stack.enter_context(SparkStart(modules, stores))

    def backend(self) -> Backend:
        """Wait for Spark and return the backend."""
        if self._backend is None and self._start is not None:
            from ..spark.backend import SparkBackend

            backend = SparkBackend(self._start.wait())
            self._stack.callback(_close, backend)
            self._backend = backend
        elif self._backend is None:
            from ..driver.serial import SerialBackend

            self._backend = SerialBackend()
        return self._backend

    def slots(self) -> int:
        """Wait for Spark and return how many groups can run at once; without Spark, the number of cores."""
        if self._needs_spark:
            return self.backend().slots
        return self._slots or os.cpu_count() or 1


def _close(backend: SparkBackend) -> None:
    """Close a backend, unless the JVM ended together with the run."""
    with contextlib.suppress(Exception):
        backend.close()


def _command_line(ctx: click.Context) -> list[str]:
    """Return the command as it was given, without secrets."""
    program = ctx.command_path.split()
    if program[0] != "spark-butler":
        program = ["spark-submit" if "PYSPARK_GATEWAY_PORT" in os.environ else "python", sys.argv[0]]
    return clean_command([*program, *ctx.meta.get(_COMMAND_KEY, ())])


def _import_debug() -> None:
    """Import the user's module ``debug``, for the tasks that are made in this process."""
    try:
        import debug  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        logger.warning("No 'debug' module found.")


def _print_unhandled(request: RunRequest) -> None:
    """Print the values of ``--show`` that are not known."""
    if request.show.unhandled:
        names = ", ".join(sorted(request.show.unhandled))
        click.echo(f"The following '--show' options were not known to the run command: {names}", err=True)


def _print_report_location(reporter: RunReporter) -> None:
    """Print the report's location after a failed run."""
    if reporter.places:
        print_line(f"The report is in {reporter.places[0]}.")
