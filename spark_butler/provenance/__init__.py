"""Scans of quanta, and provenance graphs that are recorded and read back."""

from __future__ import annotations

__all__: list[str] = []
