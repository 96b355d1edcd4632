"""Reporter of a run: bars and status while it goes on, the report at its end.  Runs in the driver."""

from __future__ import annotations

__all__ = ["RunReporter", "Ticker", "build_reporter"]

import contextlib
import datetime
import json
import logging
import platform
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from ..atomic_write import write_at_once
from ..datastore.graph_butler import GraphButler
from ..driver.backend import Backend
from ..driver.events import ObserverGroup, RunObserver
from ..driver.inventory import count_done_before
from ..masking import hide_secrets
from ..planning.request import RunRequest
from ..repository.checks import store_roots
from ..repository.task_history import find_task_means, load_times
from ..text import best_effort, brief
from .content import make_content
from .folder import AttemptFolder, new_attempt
from .html import make_page
from .progress import Progress
from .record import RunInfo, RunRecord
from .status_file import write_status
from .text import progress_line

logger = logging.getLogger(__name__)

_STATUS_SECONDS = 10.0
_LOG_SECONDS = 60.0
_BAR_SECONDS = 0.25
_JOIN_SECONDS = 5.0
_OPTIONS = ("pipeline", "graph_file", "inputs", "output", "output_run", "where")


class RunReporter:
    """Reporter of a run while the context lasts; if that ends with an error, it writes the report then.

    Parameters
    ----------
    run
        Facts that are known before the run.
    root
        Root of the datastore that holds status and report; with `None`,
        neither is written.
    bars
        Whether to draw bars on standard error; by default if that is a
        terminal.
    on_cancel
        Called, in another thread, after ``spark-butler cancel``.
    progress
        Counts quanta; by default one of its own.
    seconds_between
        Time between two writings of the status.

    Notes
    -----
    Nothing here raises: a run does not fail because its status or report
    can't be written.
    """

    def __init__(
        self,
        run: RunInfo,
        root: ResourcePath | None = None,
        *,
        bars: bool | None = None,
        on_cancel: Callable[[], None] | None = None,
        progress: Progress | None = None,
        seconds_between: float = _STATUS_SECONDS,
    ):
        self._run = run
        self._folder = None if root is None else new_attempt(root, run.run, run.started)
        self._bars = sys.stderr.isatty() if bars is None else bars
        self._on_cancel = on_cancel
        self._seconds_between = seconds_between
        self.progress = Progress(slots=run.slots) if progress is None else progress
        self.record = RunRecord()
        self.cancelled = False
        """Whether ``spark-butler cancel`` has asked the run to end."""
        self.places: list[ResourcePath] = []
        """Addresses of the page of the report, once the run has ended."""
        self.content: dict[str, Any] | None = None
        """Content of the report, once the run has ended."""
        self._stack = contextlib.ExitStack()
        self._is_over = False

    @property
    def log_requests(self) -> str:
        """Address of the folder with requests for logs of running quanta; empty if there is none."""
        return "" if self._folder is None else str(self._folder.log_requests)

    @property
    def observer(self) -> RunObserver:
        """The observer for `~spark_butler.driver.execute_graph`."""
        return ObserverGroup(self.progress, self.record)

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._stack.enter_context(Ticker(self._keep_status, self._seconds_between, "status"))
        self._stack.enter_context(Ticker(self._log, _LOG_SECONDS, "progress line"))
        if self._bars:
            with best_effort("No bars can be drawn here"):
                from .terminal import Bars

                bars = self._stack.enter_context(Bars(self.progress.snapshot))
                self._stack.enter_context(Ticker(bars.draw, _BAR_SECONDS, "display"))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object
    ) -> None:
        self._stop()
        if isinstance(exc, Exception) and self.record.totals:
            self.finish("broken", brief(exc))

    def _stop(self) -> None:
        self._is_over = True
        self._stack.close()

    def finish(self, state: str, reason: str = "", *, n_ingested: int | None = None) -> None:
        """Write the last status and the report.

        Parameters
        ----------
        state
            State of the run; see `make_content`.
        reason
            The cause, if the run ended before its time.
        n_ingested
            Number of datasets that were registered, if known.
        """
        self._stop()
        with best_effort("No report could be made of the run"):
            content = make_content(self._run, self.record, state=state, reason=reason, n_ingested=n_ingested)
            page = make_page(content)
            self.content = content
            if (folder := self._folder) is not None:
                with best_effort(f"The report could not be written to {folder.uri}"):
                    data = json.dumps(content, separators=(",", ":"), default=str)
                    write_at_once(folder.report_file, data.encode())
                    write_at_once(folder.page_file, page.encode())
                    self.places.append(folder.page_file)
        if self._folder is not None:
            with best_effort("The last status could not be written", level=logging.DEBUG):
                self._write_status(self._folder, state)

    def _keep_status(self) -> None:
        """Write the status, and end the run if ``spark-butler cancel`` has asked for it."""
        assert self._folder is not None
        if self._is_over:
            return
        self._write_status(self._folder, "running")
        if not self.cancelled and self._on_cancel is not None and self._folder.cancel_file.exists():
            if self._is_over:
                return
            self.cancelled = True
            logger.info("The run was asked to end.")
            self._on_cancel()

    def _write_status(self, folder: AttemptFolder, state: str) -> None:
        write_status(folder, self._run, self.progress.snapshot(), state, self._seconds_between)

    def _log(self) -> None:
        if self.progress.snapshot().total.total:
            logger.info("%s", progress_line(self.progress.snapshot()))


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
    """Build the reporter of a run; another thread calls ``on_cancel`` after ``spark-butler cancel``."""
    options = {name: value for name in _OPTIONS if (value := getattr(request, name))}
    if isinstance(pipeline := options.get("pipeline"), Pipeline):
        # The text of a pipeline would be a whole file.
        options["pipeline"] = f"in memory, of {', '.join(pipeline.task_labels)}"
    options.update(request.options.model_dump(mode="json"))
    roots = store_roots(butler)

    def find_slots() -> int:
        slots = backend.present_slots
        return min(request.options.processes or slots, slots)

    done_before: dict[str, int] = {}
    if request.options.skip_existing and isinstance(butler, Butler):
        with best_effort("Can't count the quanta that were done before"):
            done_before = count_done_before(butler, graph)
    return RunReporter(
        RunInfo(
            graph.header.output_run,
            hide_secrets(request.repo),
            slots=find_slots(),
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
        progress=Progress(
            slots=find_slots, task_seconds=find_task_means(load_times(roots[0])) if roots else {}
        ),
        on_cancel=on_cancel,
    )


class Ticker:
    """A thread that calls a function at once and every few seconds, while the context lasts.

    Only the first error of the function is a warning.
    """

    def __init__(self, action: Callable[[], None], seconds: float, name: str):
        self._action = action
        self._seconds = seconds
        self._name = name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"spark-butler {name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        # A store that does not answer must not hold up the end of the run.
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        level = logging.WARNING
        is_over = False
        while not is_over:
            has_failed = True
            with best_effort(f"The {self._name} of the run failed", level=level):
                self._action()
                has_failed = False
            level = logging.DEBUG if has_failed else level
            is_over = self._ended.wait(self._seconds)
