"""Reading and writing the Butler registry for a run.  Runs in the driver: no other process connects to it."""

from __future__ import annotations

__all__: list[str] = []
