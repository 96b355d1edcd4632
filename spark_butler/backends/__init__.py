"""Where groups run: the serial backend specifies, the Spark backend distributes."""

from __future__ import annotations

__all__ = ["Backend", "ReportOutcome", "SerialBackend"]

from typing import TYPE_CHECKING, Any

from ._protocol import Backend, ReportOutcome

if TYPE_CHECKING:
    from .serial import SerialBackend


def __getattr__(name: str) -> Any:
    # A driver that has Spark needs nothing of what quanta run with.
    if name != "SerialBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .serial import SerialBackend

    return SerialBackend
