"""The command that runs a pipeline on Spark, with the options of ``pipetask run``."""

from __future__ import annotations

__all__ = ["make_run_command"]

import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import click
import lsst.utils.timer
import networkx
from lsst.ctrl.mpexec.cli.cmd.commands import PipetaskCommand, coverage_context
from lsst.ctrl.mpexec.cli.opt import run_options
from lsst.daf.butler import Butler, Config
from lsst.daf.butler.cli.utils import yaml_presets
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath
from lsst.utils.threads import disable_implicit_threading

from ..driver.backend import Backend
from ..driver.engine import execute_graph, plan_graph
from ..driver.existing_outputs import needs_clobber
from ..driver.scheduler import RunResult
from ..errors import EngineError, OptionsError, UserError
from ..planning.graph import (
    RunRequest,
    apply_fixup,
    build_graph,
    read_task_modules,
    show_pipeline,
    task_modules,
)
from ..planning.plan import Plan
from ..provenance.recorder import ProvenanceRecorder
from ..report import RunWatch
from ..report.summary import make_report, summarize
from ..repository.checks import check_repository
from ..repository.output_run import OutputRequest, check_output, find_packages, prepare_output
from ..request_watch import describe_end
from ..spark.session import check_platform, say_on_stderr
from ..spark.startup import SparkStart
from ..temporaries.dataset_types import find_temporary_types
from ..text import brief
from .command import CONTEXT, format_option, kept_logging_arguments, say_json
from .ending import describe_run
from .logging_options import logging_options, start_logging
from .request import make_request
from .run_options import engine_options
from .watch import COMMAND_KEY, Watching, watch_run

logger = logging.getLogger(__name__)

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


class _Refusal(click.ClickException):
    """One line on standard error and exit status 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        _say(f"Error: {self.format_message()}")


class _Breakdown(_Refusal):
    """One line on standard error and exit status 1."""

    exit_code = 1


class _RunCommand(PipetaskCommand):
    """A command whose every complaint about its arguments has exit status 2.

    It reads the options files (``-@``) that were made for ``pipetask run``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Logging options may stand before the name of the command, too.
        args = [*kept_logging_arguments(ctx), *args]
        ctx.meta[COMMAND_KEY] = list(args)
        try:
            parsed: list[str] = super().parse_args(ctx, args)
        except click.UsageError:
            raise
        except click.ClickException as exc:
            raise _Refusal(exc.format_message()) from exc
        return parsed


def _read_options_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Take the defaults of other options from a file: from what is there for ``plan``, or for ``run``."""
    if value is None:
        return
    name, section = ctx.info_name, "run"
    if name == "plan":
        with contextlib.suppress(Exception):
            # What is wrong with the file is said below.
            section = name if name in Config(value) else section
    ctx.info_name = section
    try:
        yaml_presets(ctx, "options_file", value)
    finally:
        ctx.info_name = name


class _Stopped(BaseException):
    """A signal asks the run to end."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


def make_run_command(
    name: str = "run", default_pipeline: Path | None = None, *, only_plan: bool = False
) -> click.Command:
    """Make the command.

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
        help="Where quanta run: on Spark, or one after another in this process.",
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
            raise _Refusal(brief(exc)) from exc
        except EngineError as exc:
            logger.debug("The engine failed.", exc_info=True)
            raise _Breakdown(f"The engine failed: {brief(exc)}") from exc
        except KeyboardInterrupt:
            _say("Stopped by SIGINT before any quantum ran.")
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
    """Do what the command was asked for and return the exit status."""
    watching = Watching.from_options(ctx, kwargs)
    start_logging(kwargs)
    dry_run, backend_name = kwargs.pop("dry_run"), kwargs.pop("backend")
    as_json = kwargs.pop("form") == "json"
    if as_json and kwargs["show"]:
        raise OptionsError("--show prints for people; it can't be combined with --format json.")
    request = make_request(ctx, kwargs, default_pipeline=default_pipeline, on_spark=backend_name == "spark")
    show = request.show
    if not request.arguments["enable_implicit_threading"]:
        disable_implicit_threading()
    with coverage_context(dict(request.arguments)):
        if backend_name == "spark":
            check_platform()
        stores = [str(root) for root in check_repository(request.arguments["butler_config"])]
        factory = show_pipeline(request)
        if show.handled and not show.unhandled:
            _say_shown("No quantum graph generated or pipeline executed.")
            return 0
        with contextlib.ExitStack() as stack:

            def start_spark(modules: Sequence[str]) -> SparkStart:
                return stack.enter_context(SparkStart(modules, stores))

            needs_spark = backend_name == "spark" and not dry_run and not request.arguments["init_only"]
            return _run_graph(
                *(request, factory, watching, start_spark if needs_spark else None),
                dry_run=dry_run,
                as_json=as_json,
            )


def _run_graph(
    request: RunRequest,
    factory: Any,
    watching: Watching,
    start_spark: Callable[[Sequence[str]], SparkStart] | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Build or read the graph, explain it, check and run it."""
    arguments, show = request.arguments, request.show
    spark: SparkStart | None = None
    if start_spark is not None and not (show.handled or show.unhandled):
        # Workers import what tasks need while the graph is built or read.
        if modules := _find_modules(request, factory):
            spark = start_spark(modules)
    with watching.timing("quantum graph"):
        graph = build_graph(request, factory)
    if show.unhandled:
        click.echo(
            "The following '--show' options were not known to the run command: "
            f"{', '.join(sorted(show.unhandled))}",
            err=True,
        )
    if show.handled:
        _say_shown("No pipeline executed.")
        return 0
    if start_spark is not None and spark is None:
        spark = start_spark(task_modules(graph.pipeline_graph))
    xgraph = apply_fixup(graph, arguments["graph_fixup"])
    output = OutputRequest.from_arguments(graph, arguments)
    check_output(graph, output, probe_datastore=not dry_run)
    plan = _make_plan(graph, xgraph, request)
    if dry_run:
        if as_json:
            say_json(plan.describe())
        else:
            click.echo(plan.explain())
        return 0
    logger.info("%s", plan.explain())
    run = graph.header.output_run
    stopped: _Stopped | None = None
    # While Spark starts.
    packages = None if spark is not None and spark.has_failed else find_packages(output)
    with contextlib.ExitStack() as stack:
        with watching.timing("Spark session"):
            backend = stack.enter_context(_open_backend(spark))
        if request.options.debug:
            _import_debug()
        with watching.timing("output run"):
            butler = stack.enter_context(prepare_output(graph, output, packages))
        if arguments["init_only"]:
            if as_json:
                say_json({"run": run, "state": "initialized", "exit_status": 0})
            return 0
        recorder: ProvenanceRecorder | None = None
        if request.provenance_graph is not None:
            recorder = ProvenanceRecorder(graph, request.provenance_graph, butler=butler, xgraph=xgraph)
            stack.enter_context(recorder)
        stack.enter_context(lsst.utils.timer.profile(arguments["profile"], logger))
        start = time.time()
        watch = watch_run(watching, run, request, butler, backend)
        try:
            with _ending_on_signals(), watch:
                result = execute_graph(
                    *(graph, butler, backend, request.options),
                    xgraph=xgraph,
                    recorder=recorder,
                    watcher=watch.watcher,
                )
                unwritten = _write_provenance(recorder, result)
        except _Stopped as exc:
            stopped = exc
            how_to_resume = _tell_how_to_resume(butler, graph, output)
        except EngineError:
            _say(_tell_how_to_resume(butler, graph, output))
            _say_places(watch)
            if as_json:
                say_json(describe_run(watch, run, "broken", 1))
            raise
    if stopped is not None:
        by = "`spark-butler cancel`" if watch.cancelled else stopped.number.name
        watch.finish("stopped", f"Stopped by {by}.")
        _say_places(watch)
        status = _say_stopped(stopped, by, how_to_resume)
        if as_json:
            say_json(describe_run(watch, run, "stopped", status))
        return status
    if not as_json:
        click.echo(summarize(graph, result, wall_seconds=time.time() - start, n_ingested=result.n_ingested))
    if summary := arguments["summary"]:
        with ResourcePath(summary).open("w") as stream:
            stream.write(make_report(graph, result).model_dump_json(exclude_none=True, indent=2))
    state, reason = describe_end(result)
    watch.finish(state, reason, n_ingested=result.n_ingested)
    status = 1 if result.failed or unwritten is not None else 0
    if as_json:
        say_json(describe_run(watch, run, state, status))
    elif watch.places:
        click.echo(f"The report is in {watch.places[0]}.")
    if unwritten is not None:
        raise unwritten
    return status


def _find_modules(request: RunRequest, factory: Any) -> list[str]:
    """List the modules that tasks are in, as far as that is known before there is a graph."""
    if request.graph_file is None:
        return task_modules(factory(resolve=False))
    return read_task_modules(request.graph_file)


def _write_provenance(recorder: ProvenanceRecorder | None, result: RunResult) -> EngineError | None:
    """Write the provenance graph, and return what stood against it until the summary is printed."""
    try:
        if recorder is not None:
            recorder.finish(result)
    except EngineError as exc:
        return exc
    return None


def _make_plan(
    graph: PredictedQuantumGraph, xgraph: networkx.DiGraph[uuid.UUID], request: RunRequest
) -> Plan:
    """Cut the graph as the engine will, as far as that can be known before Spark is there."""
    slots = request.options.processes or os.cpu_count() or 1
    if not find_temporary_types(graph.pipeline_graph, request.options):
        return plan_graph(graph, request.options, xgraph=xgraph, slots=slots)
    with Butler.from_config(request.arguments["butler_config"], writeable=False) as butler:
        return plan_graph(graph, request.options, xgraph=xgraph, slots=slots, butler=butler)


@contextlib.contextmanager
def _open_backend(spark: SparkStart | None) -> Iterator[Backend]:
    """Make the backend of a Spark that has been started, or one without Spark."""
    if spark is None:
        from ..driver.serial import SerialBackend

        yield SerialBackend()
        return
    from ..spark.backend import SparkBackend

    backend = SparkBackend(spark.wait())
    try:
        yield backend
    finally:
        with contextlib.suppress(Exception):
            # What ended the run may have ended the JVM, too.
            backend.close()


def _import_debug() -> None:
    """Import the user's module ``debug``, for the tasks that are made in this process."""
    try:
        import debug  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        logger.warning("No 'debug' module found.")


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into an exception that ends the run in order; the second kills."""

    def stop(number: int, frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(signal.Signals(number))

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # Not the main thread, where signals arrive.
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    """Write a line to standard error."""
    if not say_on_stderr(line):
        with contextlib.suppress(BrokenPipeError):
            # After Ctrl-C, spark-submit is gone before this process.
            click.echo(line, err=True)


def _say_shown(what: str) -> None:
    click.echo(f"{what} The --show option was given and all options were processed.", err=True)


def _tell_how_to_resume(butler: Butler, graph: PredictedQuantumGraph, output: OutputRequest) -> str:
    """Say which options make the same command go on where it stopped."""
    options = "--extend-run --skip-existing"
    with contextlib.suppress(Exception):
        # The registry may be what failed.
        if needs_clobber(butler, graph):
            options += " --clobber-outputs"
    replacing = [name for name in ("replace_run", "prune_replaced") if output.collections[name]]
    instead = f" instead of --{' and --'.join(replacing)}".replace("_", "-") if replacing else ""
    run = output.collections["output_run"]
    return f"What was finished is in run {run!r}; to resume, repeat the command with {options}{instead}."


def _say_places(watch: RunWatch) -> None:
    """Say where the report of a run is that has come to no good end."""
    if watch.places:
        _say(f"The report is in {watch.places[0]}.")


def _say_stopped(stopped: _Stopped, by: str, how_to_resume: str) -> int:
    """Say how to go on after a signal, and return the exit status that shells give it."""
    _say(f"Stopped by {by}. {how_to_resume}")
    return 128 + stopped.number
