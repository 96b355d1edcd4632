"""Run a group of quanta in a Python worker and its children."""

from __future__ import annotations

__all__: list[str] = []
