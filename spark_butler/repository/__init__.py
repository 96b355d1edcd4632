"""What the driver reads from and writes to the Butler registry."""

from __future__ import annotations

__all__: list[str] = []
