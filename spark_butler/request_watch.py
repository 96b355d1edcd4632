"""What is told of a run that was asked for, while it goes on and afterwards."""

from __future__ import annotations

__all__ = ["describe_end", "watch_request"]

import datetime
import json
import platform
import socket
from collections.abc import Callable, Mapping, Sequence

from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.resources import ResourcePath

from .driver.backend import Backend
from .driver.events import Progress
from .driver.scheduler import RunResult
from .planning.graph import RunRequest
from .report import Run, RunWatch
from .repository.checks import store_roots
from .repository.task_history import find_task_means, load_times
from .text import hide_secrets

_SHOWN = ("pipeline", "qgraph", "input", "output", "output_run", "data_query", "instrument")


def watch_request(
    request: RunRequest,
    run: str,
    butler: Butler,
    backend: Backend,
    *,
    on_cancel: Callable[[], None],
    command: Sequence[str] = (),
    started: datetime.datetime,
    phases: Mapping[str, float],
    copy_to: ResourcePath | None = None,
    bars: bool = False,
) -> RunWatch:
    """Prepare to watch a run.

    Parameters
    ----------
    request
        What the user asks for.
    run
        The output RUN collection.
    butler
        Butler of the repository.
    backend
        Where quanta run.
    on_cancel
        Called, in another thread, when somebody has asked the run to end.
    command
        The command line, if there is one, without secrets.
    started
        When the run was asked for.
    phases
        Seconds that each step before the run took.
    copy_to
        Folder for a copy of the report.
    bars
        Whether to draw bars.
    """
    arguments = {name: request.arguments.get(name) for name in _SHOWN}
    options = {name: value for name, value in arguments.items() if value}
    if isinstance(pipeline := options.get("pipeline"), Pipeline):
        # As text, it is a whole file.
        options["pipeline"] = f"in memory, of {', '.join(pipeline.task_labels)}"
    options.update(request.options.model_dump(mode="json"))
    roots = store_roots(butler)
    slots = min(request.options.processes or backend.slots, backend.slots)
    return RunWatch(
        Run(
            run,
            hide_secrets(str(request.arguments["butler_config"])),
            slots=slots,
            command=command,
            options=json.loads(hide_secrets(json.dumps(options, default=str))),
            platform={
                "driver": socket.gethostname(),
                "system": platform.platform(),
                **getattr(backend, "platform", {}),
            },
            phases=phases,
            started=started,
        ),
        roots[0] if roots else None,
        copy_to=copy_to,
        bars=bars,
        progress=Progress(slots=slots, task_seconds=find_task_means(load_times(roots[0])) if roots else {}),
        on_cancel=on_cancel,
    )


def describe_end(result: RunResult) -> tuple[str, str]:
    """Say how a run ended that came to its end.

    Parameters
    ----------
    result
        What came of it.

    Returns
    -------
    state, reason
        As `spark_butler.report.RunWatch.finish` takes them.
    """
    if result.stopped_by is not None:
        return "stopped", f"Stopped because {result.stop_reason}."
    return ("failed" if result.failed else "succeeded"), ""
