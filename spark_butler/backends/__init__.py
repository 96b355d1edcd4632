"""Where groups run: the serial backend specifies, the Spark backend distributes."""

from __future__ import annotations

__all__ = ["Backend", "ReportOutcome", "SerialBackend"]

from ._protocol import Backend, ReportOutcome
from .serial import SerialBackend
