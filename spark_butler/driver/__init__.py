"""Execution of a graph, in the driver: inventory, plan, schedule, collect, ingest."""

from __future__ import annotations

__all__ = ["Backend", "RunObserver", "execute_graph", "plan_graph"]

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .backend import Backend
    from .engine import execute_graph, plan_graph
    from .events import RunObserver

__getattr__ = lazy_names(
    __name__,
    {"Backend": "backend", "RunObserver": "events", "execute_graph": "engine", "plan_graph": "engine"},
)
