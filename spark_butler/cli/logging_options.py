"""Logging options of ``pipetask``, for every command.  Runs in the process of the command."""

from __future__ import annotations

__all__ = ["logging_options", "read_logging_options", "start_logging"]

from collections.abc import Callable, Sequence
from typing import Any

import click
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.cli.opt import (
    log_file_option,
    log_label_option,
    log_level_option,
    log_tty_option,
    long_log_option,
)

from ..masking import mask_logs
from ..worker.json_log import LOG_JSON_HELP, start_json_log


def logging_options[F: Callable[..., Any]](command: F) -> F:
    """Add the logging options of ``pipetask`` to a command."""
    command = click.option("--log-json", is_flag=True, help=LOG_JSON_HELP)(command)
    for option in (log_label_option, log_tty_option, log_file_option, long_log_option, log_level_option):
        command = option()(command)
    return command


def start_logging(kwargs: dict[str, Any]) -> None:
    """Start logging as ``pipetask`` does, with this package included.

    Workers on this host share its terminal.  They write to it only if a log
    level is given: otherwise each quantum would print several lines.

    Parameters
    ----------
    kwargs
        Values of options; those of the logging options are removed.
    """
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


def read_logging_options(arguments: Sequence[str]) -> None:
    """Start logging by the options that precede the name of a command.

    Raises
    ------
    click.UsageError
        Raised if a value can't be used.
    """

    @click.command("spark-butler")
    @logging_options
    def command(**kwargs: Any) -> None:
        start_logging(kwargs)

    command.main(list(arguments), prog_name="spark-butler", standalone_mode=False)
