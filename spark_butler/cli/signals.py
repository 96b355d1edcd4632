"""Signals that stop a run cleanly: SIGINT, SIGTERM and SIGHUP.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["Stopped", "end_in_order", "ending_on_signals"]

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import NoReturn

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Request of a signal to stop the run."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT, SIGTERM or SIGHUP in the block; the second kills."""

    def stop(number: int, frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(signal.Signals(number))

    try:
        # nohup ignores SIGHUP, and so does the run.
        numbers = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:
        # Only the main thread receives signals.
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_in_order() -> None:
    """Stop the run of this process with SIGTERM, on which it stops cleanly."""
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        logger.warning("This process has no handler of SIGTERM; the run continues.")
        return
    os.kill(os.getpid(), signal.SIGTERM)
