"""Retries of calls to the registry while its database can't be reached.  Runs in the driver."""

from __future__ import annotations

__all__ = ["is_connection_loss", "retry_database"]

import logging
import random
import sqlite3
import time
from collections.abc import Callable

import sqlalchemy.exc

from ..text import brief

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 600.0
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


def retry_database[T](
    what: str,
    call: Callable[[], T],
    *,
    is_transient: Callable[[Exception], bool] = is_connection_loss,
    seconds: float = _RETRY_SECONDS,
) -> T:
    """Return the result of a call; repeat the call while the database is unreachable.

    Parameters
    ----------
    what
        Beginning of the message that is logged before a retry: ``"The registry can't be read"``.
    call
        Function to call.  It may run several times: a call that failed may have been committed.
    is_transient
        Returns whether a retry may succeed after this error.  Other errors are raised at once.
    seconds
        Time during which the call is retried.  Then its last error is raised.
    """
    deadline = time.monotonic() + seconds
    pause = 0.2
    while True:
        try:
            return call()
        except Exception as exc:
            if not is_transient(exc) or time.monotonic() + pause > deadline:
                raise
            logger.warning("%s; trying again in %.1f s: %s", what, pause, brief(exc))
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2.0 * pause, _LONGEST_PAUSE_SECONDS)
