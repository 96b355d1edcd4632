"""Execution of a request by a command: prepare, run, print, and the exit status.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Manner", "carry_out"]

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import click
import lsst.utils.timer
from lsst.ctrl.mpexec.cli.cmd.commands import coverage_context
from lsst.resources import ResourcePath
from lsst.utils.threads import disable_implicit_threading

from ..errors import EngineError, NothingToDo, OptionsError
from ..masking import hide_secrets
from ..planning.request import RunRequest
from ..report import RunReporter, format_report
from ..report.summary import make_report
from ..report.usage import Price, format_usage, predict_usage, price_usage, read_price
from ..repository.checks import may_write
from ..repository.task_history import load_peaks, load_times
from ..run import ActiveRun, OnlyShown, PreparedRun, open_run, prepare
from ..signals_and_locks import Stopped, end_in_order, ending_on_signals
from ..spark.session import check_platform
from ..spark.startup import SparkStart
from ..text import best_effort, translate_errors
from .command import print_json
from .exit_status import FAILED, SUCCEEDED, print_line, stopped_by

if TYPE_CHECKING:
    from ..driver.backend import Backend
    from ..monitoring.metrics import RunMetrics

logger = logging.getLogger(__name__)

_COUNTS = ("quanta", "done_before", "done", "no_work", "failed", "blocked", "not_run", "retried")
_OF_FAILURE = ("task", "data_id", "kind", "reason", "attempts", "rerun")


@dataclasses.dataclass(frozen=True)
class Manner:
    """Mode of a command: where quanta run, and the form of its output."""

    on_spark: bool
    dry_run: bool
    bars: bool | None
    """Whether to draw progress bars; by default on a terminal."""
    as_json: bool
    price: Price | None
    """Money for the usage in a plan."""
    metrics_port: int | None
    metrics_file: str | None

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> Self:
        """Remove the options of this class from the options of a command, and return them as an object."""
        price = kwargs.pop("price")
        return cls(
            on_spark=kwargs.pop("backend") == "spark",
            dry_run=kwargs.pop("dry_run"),
            bars=kwargs.pop("progress"),
            as_json=kwargs.pop("form") == "json",
            price=None if price is None else read_price(price),
            metrics_port=kwargs.pop("metrics_port"),
            metrics_file=kwargs.pop("metrics_file"),
        )

    def publishing(self) -> contextlib.AbstractContextManager[RunMetrics | None]:
        """Publish metrics while the context lasts, if an option requests it."""
        if self.metrics_port is None and self.metrics_file is None:
            return contextlib.nullcontext()
        try:
            from ..monitoring.metrics import publish_metrics
        except ModuleNotFoundError as exc:
            raise OptionsError(
                f"Metrics need the package {exc.name}; run `pip install 'spark-butler[metrics]'`."
            ) from exc
        return publish_metrics(self.metrics_port, self.metrics_file)


def carry_out(
    request: RunRequest,
    manner: Manner,
    spark: SparkStart,
    *,
    prepare: Callable[..., PreparedRun] = prepare,
    open_run: Callable[..., ActiveRun] = open_run,
) -> int:
    """Run a request to its end and return the exit status."""
    further = request.graph_builder
    summary = further["summary"]
    if summary and not may_write(ResourcePath(summary, forceDirectory=False)):
        raise OptionsError(f"--summary {summary}: the file can't be written there; give another place.")
    if not further["enable_implicit_threading"]:
        disable_implicit_threading()
    with contextlib.ExitStack() as stack:
        stack.enter_context(coverage_context(dict(further)))
        metrics = stack.enter_context(manner.publishing())
        if manner.on_spark:
            check_platform()
        needs_spark = manner.on_spark and not manner.dry_run and not request.init_only
        workers = _Workers(stack, spark if needs_spark else None, slots=request.options.processes)
        try:
            prepared = prepare(
                request,
                slots=workers.slots,
                start_workers=spark.start if needs_spark else None,
                dry_run=manner.dry_run,
            )
        except OnlyShown as exc:
            _print_unhandled(request)
            print_line(f"{exc} The --show option was given and all options were processed.")
            return 0
        except NothingToDo as exc:
            if manner.as_json:
                reason = {"state": "succeeded", "reason": str(exc)}
                print_json({"run": request.output_run, **reason, "exit_status": 0})
            else:
                print_line(str(exc))
            return 0
        _print_unhandled(request)
        if manner.dry_run:
            _print_plan(prepared, manner)
            return 0
        logger.info("%s", prepared.plan.explain())
        if request.options.debug:
            _import_debug()
        bars = sys.stderr.isatty() if manner.bars is None else manner.bars
        active = stack.enter_context(open_run(prepared, workers.backend(), on_cancel=end_in_order, bars=bars))
        if request.init_only:
            if manner.as_json:
                print_json({"run": active.name, "state": "initialized", "exit_status": 0})
            return 0
        stack.enter_context(lsst.utils.timer.profile(further["profile"], logger))
        if metrics is not None:
            metrics.attach(active.name, active.reporter.progress.snapshot)
        return _drive(active, metrics, summary=summary, as_json=manner.as_json)


def _drive(active: ActiveRun, observer: RunMetrics | None, *, summary: str | None, as_json: bool) -> int:
    """Run all quanta, print the summary, and return the exit status."""
    reporter = active.reporter
    try:
        observers = () if observer is None else (observer,)
        end = active.drive(*observers, guard=ending_on_signals())
    except Stopped as exc:
        by = "`spark-butler cancel`" if reporter.cancelled else exc.number.name
        how_to_resume = active.explain_resume()
        reporter.finish("stopped", f"Stopped by {by}.")
        status = stopped_by(exc.number)
        if as_json:
            print_json(_describe_run(reporter, active.name, "stopped", status))
        _print_report_location(reporter)
        print_line(f"Stopped by {by}. {how_to_resume}")
        return status
    except EngineError:
        print_line(active.explain_resume())
        _print_report_location(reporter)
        if as_json:
            print_json(_describe_run(reporter, active.name, "broken", FAILED))
        raise
    result, graph = end.result, active.prepared.graph
    reporter.finish(end.state, end.reason, n_ingested=result.n_ingested)
    if not as_json and reporter.content is not None:
        click.echo(format_report(reporter.content))
    status = FAILED if result.failed or end.unwritten is not None else SUCCEEDED
    if as_json:
        print_json(_describe_run(reporter, active.name, end.state, status))
    elif reporter.places:
        click.echo(f"The report is in {reporter.places[0]}.")
    if summary:
        text = make_report(graph, result).model_dump_json(exclude_none=True, indent=2)
        with translate_errors(EngineError, f"Can't write the summary {summary}"):
            ResourcePath(summary).write(hide_secrets(text).encode())
    if end.unwritten is not None:
        raise end.unwritten
    return status


def _print_plan(prepared: PreparedRun, manner: Manner) -> None:
    """Print the plan, and its expected usage if earlier runs are known."""
    money = manner.price
    tasks: list[dict[str, Any]] = []
    if prepared.stores:
        root = ResourcePath(prepared.stores[0])
        cores = prepared.request.options.cores_per_quantum
        tasks = predict_usage(prepared.xgraph, load_times(root), load_peaks(root), cores)
    if manner.as_json:
        usage = [task | ({"price": price_usage(task, money)} if money else {}) for task in tasks]
        inputs = {} if prepared.inputs is None else {"inputs": prepared.inputs.describe()}
        print_json(prepared.plan.describe() | {"usage": usage} | inputs)
        return
    click.echo(prepared.plan.explain())
    if prepared.inputs is not None:
        click.echo(prepared.inputs.explain())
    if any(task["core_hours"] is not None for task in tasks):
        click.echo(f"Expected usage, from earlier runs:\n{format_usage(tasks, money)}")
    elif money:
        click.echo("The usage of the plan is unknown: these tasks have not run before.")


def _describe_run(reporter: RunReporter, run: str, state: str, status: int) -> dict[str, Any]:
    """Return the description of an ended run, with the keys of its report; ``state`` if there is none."""
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


class _Workers:
    """Workers of a run: Spark, started in the background, or this process."""

    def __init__(self, stack: contextlib.ExitStack, spark: SparkStart | None, *, slots: int | None):
        self._stack = stack
        self._spark = spark
        self._slots = slots
        self._backend: Backend | None = None
        if spark is not None:
            stack.enter_context(spark)

    def backend(self) -> Backend:
        """Wait for Spark and return the backend."""
        if self._backend is None and self._spark is not None:
            from ..spark.backend import SparkBackend

            backend = SparkBackend(self._spark.wait())
            # The JVM may have ended together with the run.
            self._stack.callback(best_effort("Can't close the backend", level=logging.DEBUG)(backend.close))
            self._backend = backend
        elif self._backend is None:
            from ..driver.serial import SerialBackend

            self._backend = SerialBackend()
        return self._backend

    def slots(self) -> int:
        """Wait for Spark and return how many groups can run at once; without Spark, the number of cores."""
        if self._spark is not None:
            return self.backend().slots
        return self._slots or os.cpu_count() or 1


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
    if reporter.places:
        print_line(f"The report is in {reporter.places[0]}.")
