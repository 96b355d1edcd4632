"""What a Python worker and its children do with a group of quanta."""

from __future__ import annotations

__all__: list[str] = []
