"""Signals that end a run in order: SIGINT, SIGTERM and SIGHUP.

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
    """A signal asks the run to end."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into an exception that ends the run; the second kills."""

    def stop(number: int, frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(signal.Signals(number))

    try:
        # nohup ignores SIGHUP, and so does the run.
        numbers = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:
        # Not the main thread, where signals arrive.
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_in_order() -> None:
    """End the run of this process by the signal on which it ends in order."""
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        logger.warning("This process does not listen to signals; the run goes on.")
        return
    os.kill(os.getpid(), signal.SIGTERM)
