"""Exit statuses, and the lines on standard error that explain them.  Runs in the command's process."""

from __future__ import annotations

__all__ = [
    "FAILED",
    "REFUSED",
    "SILENT",
    "SUCCEEDED",
    "Refusal",
    "exit_with",
    "one_line_errors",
    "print_line",
    "stopped_by",
]

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from typing import IO, Any

import click

from ..errors import EngineError, UserError
from ..masking import hide_secrets
from ..spark.spark_submit import print_stderr
from ..text import brief

logger = logging.getLogger(__name__)

SUCCEEDED = 0

FAILED = 1
"""A quantum, a file, a check or the engine failed."""

REFUSED = 2
"""The arguments were refused before anything was written."""

SILENT = 3
"""``status`` found a run whose driver no longer reports."""


def stopped_by(number: signal.Signals) -> int:
    """Return the exit status of a command that a signal stopped, as shells define it."""
    return 128 + number


def print_line(line: str) -> None:
    """Print a line on standard error, that of ``spark-submit`` included."""
    if not print_stderr(line):
        with contextlib.suppress(BrokenPipeError, OSError):
            # After Ctrl-C, spark-submit ends before this process; after SIGHUP, the terminal is closed.
            click.echo(line, err=True)


class Refusal(click.ClickException):
    """One line on standard error and exit status `REFUSED`."""

    exit_code = REFUSED

    def show(self, file: IO[Any] | None = None) -> None:
        print_line(f"Error: {hide_secrets(' '.join(self.format_message().split()))}")


@contextlib.contextmanager
def one_line_errors(ctx: click.Context) -> Iterator[None]:
    """Raise errors in arguments as one line, without the usage of the command."""
    try:
        yield
    except (Refusal, click.exceptions.NoArgsIsHelpError):
        raise
    except UserError as exc:
        raise Refusal(str(exc)) from exc
    except click.ClickException as exc:
        text = exc.format_message().replace("(Did", "Did").replace("?)", "?")
        raise Refusal(
            f"{text.rstrip('.')}{'' if text.endswith('?') else '.'} See `{ctx.command_path} --help`."
        ) from exc


class _EngineFailure(Refusal):
    """One line on standard error and exit status `FAILED`."""

    exit_code = FAILED


def exit_with(ctx: click.Context, run: Callable[[], int]) -> None:
    """Run a command and end with its exit status; print an error of the package as one line."""
    try:
        status = run()
    except UserError as exc:
        logger.debug("Refused.", exc_info=True)
        raise Refusal(brief(exc)) from exc
    except EngineError as exc:
        logger.debug("The engine failed.", exc_info=True)
        raise _EngineFailure(f"The engine failed: {brief(exc)}") from exc
    except KeyboardInterrupt:
        print_line("Stopped by SIGINT before any quantum ran.")
        status = stopped_by(signal.SIGINT)
    ctx.exit(status)
