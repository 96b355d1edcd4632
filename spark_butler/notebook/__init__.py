"""The notebook interface: queries, data IDs, background runs."""

from __future__ import annotations

__all__: list[str] = []
