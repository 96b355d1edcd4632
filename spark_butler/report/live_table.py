"""The table of a run in cells of a notebook, which is kept up to date.

Runs in the driver, that is in the notebook's kernel.
"""

from __future__ import annotations

__all__ = ["LiveDisplay", "make_html"]

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..text import best_effort
from .html import render
from .progress import ProgressSnapshot
from .text import PROGRESS_COLUMNS, describe_state, list_tasks


def make_html(
    title: str, state: str, snapshot: ProgressSnapshot, error: str = "", *, report: str | None = None
) -> str:
    """Build the table of a run.

    Parameters
    ----------
    title
        Name of the run.
    state
        Its state.
    snapshot
        Its progress.
    error
        The error that ended it, if one did.
    report
        Address of its report, if there is one.
    """
    return render(
        "live_table.html.j2",
        title=title,
        state=describe_state(state, snapshot),
        columns=PROGRESS_COLUMNS,
        tasks=list_tasks(snapshot),
        error=error,
        report=report or "",
        # Browsers open only some addresses.
        is_link=report is not None and report.startswith(("http://", "https://", "file://")),
    )


class LiveDisplay:
    """HTML in cells of a notebook, which is rendered again until it is finished.

    Parameters
    ----------
    make_html
        Builds the HTML.
    interval
        Seconds between two renderings.
    """

    def __init__(self, make_html: Callable[[], str], *, interval: float):
        self._make_html = make_html
        self._interval = interval
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown = ""

    def show(self) -> bool:
        """Show the HTML below the current cell; return whether there is a notebook to show it in."""
        if not _in_notebook():
            return False
        from IPython.display import HTML, display

        with self._lock:
            handle = display(HTML(self._make_html()), display_id=True)
            if handle is None or self._finished.is_set():
                return True
            self._handles.append(handle)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._refresh, name="spark-butler-display", daemon=True
                )
                self._thread.start()
        return True

    def finish(self) -> None:
        """Render the HTML for the last time."""
        self._finished.set()

    def _refresh(self) -> None:
        """Render the HTML again until it is finished, in the thread of the display."""
        from IPython.display import HTML

        with best_effort("The table of the run is no longer updated", level=logging.DEBUG):
            last = False
            while not last:
                last = self._finished.wait(self._interval)
                text = self._make_html()
                if text == self._shown:
                    continue
                self._shown = text
                with self._lock:
                    for handle in self._handles:
                        handle.update(HTML(text))


def _in_notebook() -> bool:
    """Whether the front end shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
