"""Plain data that the driver and the workers exchange: work items, outcomes, limits, options."""

from __future__ import annotations

__all__ = ["QuantumOutcome", "RunOptions", "RunResult"]

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .options import RunOptions
    from .outcomes import QuantumOutcome, RunResult

__getattr__ = lazy_names(
    __name__,
    {
        "QuantumOutcome": "outcomes",
        "RunOptions": "options",
        "RunResult": "outcomes",
    },
)
