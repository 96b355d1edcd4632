"""Output in a notebook that is kept up to date."""

from __future__ import annotations

__all__ = ["LiveDisplay"]

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class LiveDisplay:
    """Shows HTML in cells of a notebook, and shows it anew until it is finished.

    Parameters
    ----------
    make_html
        Makes the HTML.
    interval
        Seconds between two looks.
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
        """Show it below the current cell; return whether there is a notebook to show it in."""
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
        """Show it for the last time."""
        self._finished.set()

    def _refresh(self) -> None:
        """Show it anew, as long as something changes."""
        from IPython.display import HTML

        last = False
        while not last:
            last = self._finished.wait(self._interval)
            try:
                text = self._make_html()
                if text == self._shown:
                    continue
                self._shown = text
                with self._lock:
                    for handle in self._handles:
                        handle.update(HTML(text))
            except Exception:  # noqa: BLE001  (the run itself is well)
                logger.debug("The display can't be brought up to date.", exc_info=True)
                return


def _in_notebook() -> bool:
    """Whether what is displayed goes to a front end that shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
