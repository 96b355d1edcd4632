"""Retries of what the loss of the registry's database has broken off.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["PATIENCE_SECONDS", "is_connection_loss", "patiently"]

import logging
import random
import sqlite3
import time
from collections.abc import Callable

import sqlalchemy.exc

from ..text import brief

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""For how many seconds a database that is away is asked again."""

_LONGEST_PAUSE_SECONDS = 20.0


def is_connection_loss(exc: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, is the loss of a connection to a database server."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        if isinstance(exc, sqlalchemy.exc.DBAPIError) and not isinstance(exc.orig, sqlite3.Error):
            # Without a statement, no connection could be made.
            no_connection = isinstance(exc, sqlalchemy.exc.OperationalError) and exc.statement is None
            if exc.connection_invalidated or no_connection:
                return True
        exc = exc.__cause__ or exc.__context__
    return False


def patiently[T](
    what: str,
    call: Callable[[], T],
    *,
    may_pass: Callable[[Exception], bool] = is_connection_loss,
    patience: float = PATIENCE_SECONDS,
) -> T:
    """Return the result of a call, which is repeated while the database is away.

    Parameters
    ----------
    what
        What failed, as the beginning of a message: ``"The registry can't be read"``.
    call
        It may run several times, and may have had its effect although it has failed.
    may_pass
        Returns whether an error may be gone a moment later; others are raised at once.
    patience
        For how many seconds the call is repeated; then its error is raised.
    """
    deadline = time.monotonic() + patience
    pause = 0.2
    while True:
        try:
            return call()
        except Exception as exc:
            if not may_pass(exc) or time.monotonic() + pause > deadline:
                raise
            logger.warning("%s; trying again in %.1f s: %s", what, pause, brief(exc))
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2.0 * pause, _LONGEST_PAUSE_SECONDS)
