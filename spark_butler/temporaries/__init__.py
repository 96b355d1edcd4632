"""Dataset types that are not stored: in memory, through the shuffle, or on scratch."""

from __future__ import annotations

__all__: list[str] = []
