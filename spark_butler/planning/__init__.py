"""Building a quantum graph and a plan from a request.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Plan", "RunRequest"]

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .plan import Plan
    from .request import RunRequest

__getattr__ = lazy_names(
    __name__,
    {
        "Plan": "plan",
        "RunRequest": "request",
    },
)
