"""Watch a run: show how it stands, keep its status in the store, and leave a report."""

from __future__ import annotations

__all__ = ["RunReporter"]

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Self

from lsst.resources import ResourcePath

from ..driver.events import ObserverGroup, RunObserver
from ..text import brief
from .content import make_content
from .folder import AttemptFolder, new_attempt
from .html import make_page
from .progress import Progress
from .record import RunInfo, RunRecord
from .status import SECONDS_BETWEEN, describe_progress, progress_line
from .ticker import Ticker

logger = logging.getLogger(__name__)

_LOG_SECONDS = 60.0


class RunReporter:
    """Watches a run for as long as the context lasts; one that ends with an error has its report then.

    Parameters
    ----------
    run
        What is known of the run.
    root
        Root of a datastore, where status and report are kept; `None` keeps
        neither.
    bars
        Whether to draw bars on standard error; by default if that is a
        terminal.
    on_cancel
        Called, in another thread, when somebody has asked the run to end.
    progress
        Counts quanta; by default one of its own.
    seconds_between
        Time between two writings of the status.

    Notes
    -----
    Nothing here raises: a run is not to fail for want of somebody to look at
    it.
    """

    def __init__(
        self,
        run: RunInfo,
        root: ResourcePath | None = None,
        *,
        bars: bool | None = None,
        on_cancel: Callable[[], None] | None = None,
        progress: Progress | None = None,
        seconds_between: float = SECONDS_BETWEEN,
    ):
        self._run = run
        self._folder: AttemptFolder | None = None
        if root is not None and root.scheme not in ("mem", "file+mem"):
            self._folder = new_attempt(root, run.run, run.started)
        self._bars = sys.stderr.isatty() if bars is None else bars
        self._on_cancel = on_cancel
        self._seconds_between = seconds_between
        self.progress = Progress(slots=run.slots) if progress is None else progress
        self.record = RunRecord()
        self.cancelled = False
        """Whether somebody has asked the run to end."""
        self.places: list[ResourcePath] = []
        """Where the report is, once the run has ended."""
        self.content: dict[str, Any] | None = None
        """What the report says, once the run has ended."""
        self._stack = contextlib.ExitStack()
        self._is_over = False

    @property
    def observer(self) -> RunObserver:
        """What the engine is to tell of the run."""
        return ObserverGroup(self.progress, self.record)

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._stack.enter_context(Ticker(self._keep_status, self._seconds_between, "status"))
        self._stack.enter_context(Ticker(self._log, _LOG_SECONDS, "progress line"))
        if self._bars:
            self._show_bars()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object
    ) -> None:
        self._stop()
        if isinstance(exc, Exception) and self.record.totals:
            self.finish("broken", brief(exc))

    def _stop(self) -> None:
        """Stop watching."""
        self._is_over = True
        self._stack.close()

    def finish(self, state: str, reason: str = "", *, n_ingested: int | None = None) -> None:
        """Stop watching and write the report.

        Parameters
        ----------
        state
            How the run ended; see `make_content`.
        reason
            Why, if before its time.
        n_ingested
            Number of datasets that were put into the registry, if known.
        """
        self._stop()
        try:
            content = make_content(self._run, self.record, state=state, reason=reason, n_ingested=n_ingested)
            files = {
                "report.json": json.dumps(content, separators=(",", ":"), default=str).encode(),
                "report.html": make_page(content).encode(),
            }
        except Exception as exc:
            logger.warning("No report could be made of the run: %s", brief(exc), exc_info=True)
            return
        self.content = content
        if self._folder is None:
            return
        try:
            for name, data in files.items():
                self._folder.uri.join(name).write(data)
        except Exception as exc:  # noqa: BLE001  (many libraries may speak here)
            logger.warning("The report could not be written to %s: %s", self._folder.uri, brief(exc))
        else:
            self.places.append(self._folder.page_file)
        try:
            self._write_status(self._folder, state)
        except Exception as exc:  # noqa: BLE001  (as above)
            logger.debug("The last status could not be written: %s", brief(exc))

    def _keep_status(self) -> None:
        """Write how the run stands, and look whether it is to end."""
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
        snapshot = self.progress.snapshot()
        status: dict[str, Any] = {
            "format": 1,
            "run": self._run.run,
            "state": state,
            "started": self._run.started.isoformat(timespec="seconds"),
            "driver": f"{socket.gethostname()}:{os.getpid()}",
            **describe_progress(snapshot if state == "running" else snapshot.at_end()),
            "every": self._seconds_between,
        }
        folder.status_file.write(json.dumps(status, separators=(",", ":")).encode())

    def _log(self) -> None:
        if self.progress.snapshot().total.total:
            logger.info("%s", progress_line(self.progress.snapshot()))

    def _show_bars(self) -> None:
        """Draw bars, if rich can."""
        try:
            from .terminal import Bars

            self._stack.enter_context(Bars(self.progress.snapshot))
        except Exception as exc:  # noqa: BLE001  (a terminal may be anything)
            logger.warning("No bars can be drawn here: %s", brief(exc))
