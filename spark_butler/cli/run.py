"""Command that runs a pipeline on Spark, with the options of ``pipetask run``.  Runs in the driver."""

from __future__ import annotations

__all__ = ["RunCommand", "adapt_options", "command_line", "make_run_command", "plan", "run"]

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import click
from lsst.ctrl.mpexec.cli.cmd.commands import PipetaskCommand
from lsst.ctrl.mpexec.cli.opt import run_options
from lsst.ctrl.mpexec.cli.utils import collect_pipeline_actions
from lsst.ctrl.mpexec.showInfo import ShowInfo
from lsst.daf.butler import Config
from lsst.daf.butler.cli.utils import yaml_presets

from ..errors import OptionsError
from ..planning.request import build_request, refuse_action
from ..report import clean_command
from ..spark.spark_submit import check_encoding
from ..spark.startup import SparkStart
from .command import CONTEXT, format_option, kept_logging_arguments, start_logging, stock_logging_options
from .execute import Manner, carry_out
from .exit_status import exit_with, one_line_errors
from .run_options import backend_options, check_meaning, engine_options, input_repo_option

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


class RunCommand(PipetaskCommand):
    """A command that ends with exit status 2 for every error in its arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with one_line_errors(ctx):
            check_encoding(args)
            # Logging options may also precede the name of the command.
            args = [*kept_logging_arguments(ctx), *args]
            ctx.meta[_COMMAND_KEY] = list(args)
            return super().parse_args(ctx, args)


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


def make_run_command(name: str = "run", default_pipeline: Path | None = None) -> click.Command:
    """Build a command with the options of ``pipetask run`` and the engine; ``plan`` only prints the plan."""
    only_plan = name == "plan"

    @click.command(
        name,
        cls=RunCommand,
        epilog=_EPILOG.format(examples=_EXAMPLES[name]),
        context_settings=CONTEXT,
    )
    @run_options()
    @input_repo_option
    @engine_options
    @backend_options
    @format_option
    @stock_logging_options
    def command(ctx: click.Context, **kwargs: Any) -> None:
        """Build and run a pipeline on Spark."""
        kwargs["dry_run"] = kwargs["dry_run"] or only_plan
        exit_with(ctx, lambda: _run(ctx, default_pipeline, **kwargs))

    if only_plan:
        command.help = "Build a pipeline's quantum graph and print how it would run; nothing is written."
    return adapt_options(command)


def adapt_options(command: click.Command) -> click.Command:
    """Return a command whose options of ``pipetask`` are changed where the engine differs."""
    for param in command.params:
        if param.name == "options_file":
            param.callback = _read_options_file
        elif param.name == "processes":
            param.default = None
            assert isinstance(param, click.Option)
            param.help = "Greatest number of quanta to run at once; by default as many as Spark has slots."
    return command


def _run(ctx: click.Context, default_pipeline: Path | None, **kwargs: Any) -> int:
    start_logging(kwargs)
    manner = Manner.take(kwargs)
    if manner.as_json and kwargs["show"]:
        raise OptionsError("--show prints for people; it can't be combined with --format json.")
    try:
        kwargs = collect_pipeline_actions(ctx, **kwargs)
        show = ShowInfo(kwargs.pop("show") or [])
    except (TypeError, ValueError) as exc:
        raise refuse_action(exc) from exc
    check_meaning(kwargs, on_spark=manner.on_spark)
    request = build_request(kwargs, show=show, command=command_line(ctx), default_pipeline=default_pipeline)
    return carry_out(request, manner, ctx.ensure_object(SparkStart))


def command_line(ctx: click.Context) -> list[str]:
    """Return the command as it was given, without secrets."""
    program = ctx.command_path.split()
    if Path(sys.argv[0]).name == "__main__.py":
        program = ["spark-butler", ctx.info_name or ""]
    elif program[0] != "spark-butler":
        program = ["spark-submit" if "PYSPARK_GATEWAY_PORT" in os.environ else "python", sys.argv[0]]
    return clean_command([*program, *ctx.meta.get(_COMMAND_KEY, ())])


run = make_run_command()
plan = make_run_command("plan")
