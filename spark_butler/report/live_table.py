"""The live table of a run in cells of a notebook.  Runs in the driver, which is the notebook's kernel."""

from __future__ import annotations

__all__ = ["LiveDisplay", "ReportPage", "make_html"]

import dataclasses
import logging
import os
import sys
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any, Self

from lsst.resources import ResourcePath

from ..atomic_write import write_at_once
from ..errors import UserError
from ..text import best_effort, translate_errors
from .html import render
from .progress import STATES, ProgressSnapshot
from .text import describe_state, list_tasks


def make_html(
    title: str, state: str, snapshot: ProgressSnapshot, error: str = "", *, report: str | None = None
) -> str:
    """Build the table of a run, with the error that ended it and the address of its report, if any."""
    return render(
        "live_table.html.j2",
        title=title,
        state=describe_state(state, snapshot),
        columns=STATES,
        tasks=list_tasks(snapshot),
        error=error,
        report=report or "",
        link=_find_link(report or ""),
    )


def _find_link(address: str) -> str:
    """Return an address to which a notebook's page can link; empty if there is none."""
    if address.startswith(("http://", "https://")):
        return address
    # Pages of a server can't open files, but JupyterLab opens files beside the notebook.
    uri = ResourcePath(address, forceDirectory=False) if address else None
    here = ResourcePath(os.getcwd(), forceDirectory=True)
    path = uri.relative_to(here) if uri is not None and uri.isLocal else None
    return urllib.parse.quote(path) if path else ""


@dataclasses.dataclass(frozen=True)
class ReportPage:
    """A report that a notebook shows in a frame."""

    run: str
    html: str
    file: str | None = None
    """File for the page, to which the frame has a link."""

    def save(self) -> Self:
        """Write the page to its file, if it has one."""
        if self.file is not None:
            with translate_errors(UserError, f"Can't write {self.file}"):
                write_at_once(ResourcePath(self.file, forceAbsolute=False), self.html.encode())
        return self

    def __str__(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<ReportPage of {self.run}{f', in {self.file}' if self.file else ''}>"

    def _repr_html_(self) -> str:
        return render(
            "frame.html.j2", title=self.run, page=self.html, file=self.file, link=_find_link(self.file or "")
        )


class LiveDisplay:
    """A table in cells of a notebook, which is rendered again, by MIME type, until it is finished."""

    def __init__(self, make_bundle: Callable[[], dict[str, str]], *, interval: float):
        self._make_bundle = make_bundle
        self._interval = interval
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown: dict[str, str] = {}

    def show(self) -> bool:
        """Show the table below the current cell; return whether there is a notebook to show it in."""
        if not _in_notebook():
            return False
        from IPython.display import display

        with self._lock:
            handle = display(self._make_bundle(), raw=True, display_id=True)
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
        """Render the table for the last time."""
        self._finished.set()

    def _refresh(self) -> None:
        """Render the table again until it is finished, in the thread of the display."""
        with best_effort("The table of the run is no longer updated", level=logging.DEBUG):
            last = False
            while not last:
                last = self._finished.wait(self._interval)
                bundle = self._make_bundle()
                if bundle == self._shown:
                    continue
                self._shown = bundle
                with self._lock:
                    for handle in self._handles:
                        handle.update(bundle, raw=True)


def _in_notebook() -> bool:
    """Whether the front end shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
