"""Building a quantum graph and a plan from a request.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Plan", "RunRequest"]

from .plan import Plan
from .request import RunRequest
