"""What the demonstration needs and the engine does not."""

from __future__ import annotations

__all__: list[str] = []
