"""Base of all commands: ``--format``, options files, and logging options.

Runs in the process of the command.  Nothing here imports the middleware before
a command runs, so that help and completion are quick.
"""

from __future__ import annotations

__all__ = [
    "CONTEXT",
    "CommandGroup",
    "LeafCommand",
    "format_option",
    "join_options",
    "keep_logging_arguments",
    "kept_logging_arguments",
    "logging_options",
    "print_json",
    "print_result",
    "start_logging",
    "stock_logging_options",
]

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from ..errors import UserError
from ..masking import mask_logs
from ..text import suggest
from ..worker.json_log import LOG_JSON_HELP, start_json_log
from .exit_status import Refusal, one_line_errors

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of click for all commands."""

_BEFORE_KEY = "spark_butler.logging"
_VERBOSE_KEY = "spark_butler.verbose"


def join_options[F: Callable[..., Any]](*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return a decorator that adds several options to a command, in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# The names of ``pipetask``'s logging options; the middleware, which defines them, takes long to import.
logging_options = join_options(
    click.option(
        "--log-level",
        multiple=True,
        metavar="LEVEL|COMPONENT=LEVEL",
        help="The logging level, of everything or of one component.",
    ),
    click.option("--long-log", is_flag=True, help="Make log messages appear in long format."),
    click.option(
        "--log-file",
        multiple=True,
        metavar="FILE",
        help="File(s) to write log messages to; as JSON records where the name ends with '.json'.",
    ),
    click.option("--log-tty/--no-log-tty", default=True, help="Whether to log to the terminal."),
    click.option("--log-label", multiple=True, metavar="KEY=VALUE", help="Label to add to log records."),
    click.option("--log-json", is_flag=True, help=LOG_JSON_HELP),
)
_LOGGING_NAMES = ("log_level", "long_log", "log_file", "log_tty", "log_label", "log_json")

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of the output: text for people, JSON for programs.",
)


def keep_logging_arguments(ctx: click.Context, options: Mapping[str, Any], *, verbose: bool) -> None:
    """Store logging options that precede the name of a command; ``verbose`` stands for level INFO."""
    ctx.meta[_BEFORE_KEY] = _logging_arguments(options)
    ctx.meta[_VERBOSE_KEY] = verbose


def kept_logging_arguments(ctx: click.Context) -> list[str]:
    """Return the arguments that `keep_logging_arguments` has stored."""
    return list(ctx.meta.get(_BEFORE_KEY, ()))


def print_json(value: object) -> None:
    """Print a value as JSON; values of other types are printed as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_result(form: str, value: object, text: str) -> None:
    """Print a result in the form that ``--format`` asks for."""
    if form == "json":
        print_json(value)
    else:
        click.echo(text)


class LeafCommand(click.Command):
    """A command that takes ``--format``, an options file, and logging options.

    Its function receives the format as ``form``; the base handles the others.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.params += _common.params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with one_line_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        given = {name: ctx.params.pop(name) for name in _LOGGING_NAMES}
        arguments = [*kept_logging_arguments(ctx), *_logging_arguments(given)]
        _start_logging(arguments, verbose=ctx.meta.get(_VERBOSE_KEY, False))
        return super().invoke(ctx)


def _read_options_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Read the defaults of other options from a file."""
    if value is not None:
        from lsst.daf.butler.cli.utils import yaml_presets

        yaml_presets(ctx, "options_file", value)


@click.command()
@format_option
@click.option(
    "-@",
    "--options-file",
    metavar="FILE",
    expose_value=False,
    callback=_read_options_file,
    help="YAML file with values of options, below the name of the command; can be a URI.",
)
@logging_options
def _common() -> None:
    """Hold the options of all commands."""


class CommandGroup(click.Group):
    """A group that prints a `UserError` as one line, and suggests a command for an unknown one."""

    command_class = LeafCommand

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            raise Refusal(f"{args[0]!r} is not a command of {ctx.command_path}; {suggest(args[0], names)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with one_line_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as exc:
            raise Refusal(str(exc)) from exc


def stock_logging_options[F: Callable[..., Any]](command: F) -> F:
    """Add the logging options of ``pipetask``, as its own code defines them, to a command."""
    from lsst.daf.butler.cli import opt

    command = click.option("--log-json", is_flag=True, help=LOG_JSON_HELP)(command)
    for name in ("log_label", "log_tty", "log_file", "long_log", "log_level"):
        command = getattr(opt, f"{name}_option")()(command)
    return command


def start_logging(kwargs: dict[str, Any]) -> None:
    """Start logging as ``pipetask`` does, by options that are removed from ``kwargs``.

    Workers on this host share its terminal.  They write to it only if a log
    level is given: otherwise each quantum would print several lines.
    """
    from lsst.daf.butler.cli.cliLog import CliLog

    options = {
        "longlog": kwargs.pop("long_log"),
        "log_tty": kwargs.pop("log_tty"),
        "log_file": kwargs.pop("log_file"),
        "log_label": kwargs.pop("log_label"),
    }
    as_json = kwargs.pop("log_json")
    if as_json:
        options["log_tty"] = False
    CliLog.initLog(**options)
    mask_logs()
    if as_json:
        start_json_log()
        # Workers do so, too.
        CliLog.configState.append((start_json_log,))
    elif not kwargs["log_level"]:
        # Workers repeat these settings; see `spark_butler.worker.state.WorkerState.prepare`.
        CliLog.configState[-1] = (CliLog.initLog, *{**options, "log_tty": False}.values())
    levels: list[tuple[str | None, str]] = [("spark_butler", "INFO"), ("py4j", "WARNING")]
    for component, level in dict(kwargs.pop("log_level")).items():
        levels.append((component, level))
        if component is None:
            levels.append(("spark_butler", level))
    CliLog.setLogLevels(levels)


def _start_logging(arguments: list[str], *, verbose: bool) -> None:
    """Start logging by the options; without options, log only warnings."""
    if arguments:

        @click.command("spark-butler")
        @stock_logging_options
        def command(**kwargs: Any) -> None:
            start_logging(kwargs)

        command.main(arguments, prog_name="spark-butler", standalone_mode=False)
        return
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("spark_butler").setLevel(logging.INFO if verbose else logging.WARNING)


def _logging_arguments(params: Mapping[str, Any]) -> list[str]:
    """Return logging options as arguments of a command line."""
    return [
        *(f"--log-level={value}" for value in params["log_level"]),
        *(["--long-log"] if params["long_log"] else ()),
        *(f"--log-file={value}" for value in params["log_file"]),
        *(() if params["log_tty"] else ["--no-log-tty"]),
        *(f"--log-label={value}" for value in params["log_label"]),
        *(["--log-json"] if params["log_json"] else ()),
    ]
