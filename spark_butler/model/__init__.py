"""Plain data that the driver and the workers exchange: work items, outcomes, limits, options."""

from __future__ import annotations

__all__ = ["QuantumOutcome", "RunOptions", "RunResult"]

from .options import RunOptions
from .outcomes import QuantumOutcome, RunResult
