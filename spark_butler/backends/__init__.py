"""Where groups run: the serial backend specifies, the Spark backend distributes."""

from __future__ import annotations

__all__ = ["Backend", "ReportOutcome", "SerialBackend"]

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._protocol import Backend, ReportOutcome
    from .serial import SerialBackend

# A driver that has Spark needs nothing of what quanta run with, and a daemon that is forked nothing at all.
_ROOMS = {"Backend": "_protocol", "ReportOutcome": "_protocol", "SerialBackend": "serial"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
