"""What the run command does so that its run can be watched, now and afterwards."""

from __future__ import annotations

__all__ = ["COMMAND_KEY", "Watching", "watch_run"]

import contextlib
import dataclasses
import datetime
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

import click
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from ..driver.backend import Backend
from ..planning.graph import RunRequest
from ..report import RunWatch, clean_command
from ..request_watch import watch_request

logger = logging.getLogger(__name__)

COMMAND_KEY = "spark_butler.command"
"""Where the context of the command keeps its arguments as they were given."""


@dataclasses.dataclass
class Watching:
    """How a run is to be watched, and what is known of it before its first quantum."""

    command: list[str]
    """The program and its arguments."""

    bars: bool
    """Whether to draw bars."""

    copy_to: ResourcePath | None = None
    """Folder for a copy of the report."""

    started: datetime.datetime = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC)
    )
    """When the command was given."""

    phases: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds that each step before the run took."""

    @classmethod
    def from_options(cls, ctx: click.Context, kwargs: dict[str, Any]) -> Self:
        """Take the options that only concern those who watch.

        Parameters
        ----------
        ctx
            Context of the command.
        kwargs
            Values of the options, of which some are removed.
        """
        program = ctx.command_path.split()
        if program[0] != "spark-butler":
            program = ["spark-submit" if "PYSPARK_GATEWAY_PORT" in os.environ else "python", sys.argv[0]]
        wanted, report = kwargs.pop("progress"), kwargs.pop("report")
        return cls(
            clean_command([*program, *ctx.meta.get(COMMAND_KEY, ())]),
            bars=sys.stderr.isatty() if wanted is None else wanted,
            copy_to=None if report is None else ResourcePath(report, forceDirectory=True, forceAbsolute=True),
        )

    @contextlib.contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Measure a step.

        Parameters
        ----------
        phase
            Name of the step.
        """
        start = time.monotonic()
        yield
        self.phases[phase] = time.monotonic() - start


def watch_run(
    watching: Watching, run: str, request: RunRequest, butler: Butler, backend: Backend
) -> RunWatch:
    """Prepare to watch a run.

    Parameters
    ----------
    watching
        How to.
    run
        The output RUN collection.
    request
        What the user asks for.
    butler
        Butler of the repository.
    backend
        Where quanta run.
    """
    return watch_request(
        request,
        run,
        butler,
        backend,
        on_cancel=_end_in_order,
        command=watching.command,
        started=watching.started,
        phases=watching.phases,
        copy_to=watching.copy_to,
        bars=watching.bars,
    )


def _end_in_order() -> None:
    """End the run of this process as anybody might, by the signal on which it ends in order."""
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        logger.warning("This process does not listen to signals; the run goes on.")
        return
    os.kill(os.getpid(), signal.SIGTERM)
