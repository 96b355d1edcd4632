"""What the driver does while a graph runs: inventory, plan, schedule, collect, ingest."""

from __future__ import annotations

__all__: list[str] = []
