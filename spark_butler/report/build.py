"""Builder of the reporter of a run from its request and its graph.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["build_reporter"]

import datetime
import json
import platform
import socket
from collections.abc import Callable, Mapping

from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from ..datastore.graph_butler import GraphButler
from ..driver.backend import Backend
from ..driver.inventory import count_done_before
from ..masking import hide_secrets
from ..planning.request import RunRequest
from ..repository.checks import store_roots
from ..repository.task_history import find_task_means, load_times
from ..text import best_effort
from .progress import Progress
from .record import RunInfo
from .watch import RunReporter

_SHOWN = ("pipeline", "graph_file", "inputs", "output", "output_run", "where")


def build_reporter(
    request: RunRequest,
    graph: PredictedQuantumGraph,
    butler: Butler | GraphButler,
    backend: Backend,
    *,
    phases: Mapping[str, float],
    started: datetime.datetime,
    on_cancel: Callable[[], None],
    bars: bool,
) -> RunReporter:
    """Build the reporter of a run.

    Parameters
    ----------
    butler
        Butler of the repository, or that of the graph for a run without a
        registry.
    on_cancel
        Function that another thread calls after ``spark-butler cancel``.
    bars
        Whether to draw progress bars.
    """
    options = {name: value for name in _SHOWN if (value := getattr(request, name))}
    if isinstance(pipeline := options.get("pipeline"), Pipeline):
        # The text of a pipeline would be a whole file.
        options["pipeline"] = f"in memory, of {', '.join(pipeline.task_labels)}"
    options.update(request.options.model_dump(mode="json"))
    roots = store_roots(butler)
    slots = min(request.options.processes or backend.slots, backend.slots)
    done_before: dict[str, int] = {}
    if request.options.skip_existing and isinstance(butler, Butler):
        with best_effort("Can't count the quanta that were done before"):
            done_before = count_done_before(butler, graph)
    return RunReporter(
        RunInfo(
            graph.header.output_run,
            hide_secrets(request.repo),
            slots=slots,
            command=request.command,
            options=json.loads(hide_secrets(json.dumps(options, default=str))),
            platform={
                "driver": socket.gethostname(),
                "system": platform.platform(),
                **getattr(backend, "platform", {}),
            },
            phases=phases,
            done_before=done_before,
            quanta={label: len(quanta) for label, quanta in graph.quanta_by_task.items()},
            started=started,
        ),
        roots[0] if roots else None,
        bars=bars,
        progress=Progress(slots=slots, task_seconds=find_task_means(load_times(roots[0])) if roots else {}),
        on_cancel=on_cancel,
    )
