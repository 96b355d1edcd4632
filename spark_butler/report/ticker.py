"""A thread that does something every few seconds."""

from __future__ import annotations

__all__ = ["Ticker"]

import logging
import threading
from collections.abc import Callable
from typing import Self

from ..text import brief

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 5.0


class Ticker:
    """Does something at once and every few seconds, in a thread of its own, while the context lasts.

    Parameters
    ----------
    action
        What to do.  That it raises is logged the first time, and no more.
    seconds
        Time between two calls.
    name
        What is done, for the log.
    """

    def __init__(self, action: Callable[[], None], seconds: float, name: str):
        self._action = action
        self._seconds = seconds
        self._name = name
        self._ended = threading.Event()
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=f"spark-butler {name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        # A store that does not answer must not hold up the end of the run.
        self._thread.join(_PATIENCE_SECONDS)

    def _run(self) -> None:
        while True:
            try:
                self._action()
            except Exception as exc:  # noqa: BLE001  (the run itself is well)
                level = logging.DEBUG if self._has_failed else logging.WARNING
                logger.log(level, "The %s of the run failed: %s", self._name, brief(exc))
                self._has_failed = True
            if self._ended.wait(self._seconds):
                return
