"""The way from a request to a quantum graph and a plan."""

from __future__ import annotations

__all__: list[str] = []
