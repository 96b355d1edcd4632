"""Checks of the user's functions before they are sent to workers.  Runs in the driver."""

from __future__ import annotations

__all__ = ["check_arguments", "check_function"]

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle

from ..errors import OptionsError, UserError
from ..text import brief


def check_function(caller: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Check that a function, which a method was given, can be sent to workers and be called there."""
    check_arguments(caller, function, arguments)
    reasons: list[Exception] = []

    def pickle_it() -> None:
        try:
            cloudpickle.dumps(function)
        except Exception as exc:  # noqa: BLE001  (each object that a function refers to raises its own)
            reasons.append(exc)

    # In a thread of its own, since PySpark keeps a list, by thread, of the broadcasts that were pickled.
    thread = threading.Thread(target=pickle_it, name="spark-butler-pickle")
    thread.start()
    thread.join()
    for reason in reasons:
        if isinstance(reason, UserError):
            raise reason
        raise OptionsError(
            f"{caller}: {_name(function)} can't be sent to workers: {brief(reason)}"
        ) from reason


def check_arguments(caller: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Check that a function takes the arguments that it will be called with."""
    wanted = f"expected a function f({', '.join(arguments)})"
    if not callable(function):
        raise OptionsError(f"{caller}: {function!r} can't be called; {wanted}.")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        # Some functions written in C have no signature.
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise OptionsError(f"{caller}: {_name(function)} takes {signature}; {wanted}.") from None


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
