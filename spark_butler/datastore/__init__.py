"""Files and S3 below the Butler: clients, cache, prefetch, listing, quantum-backed butlers."""

from __future__ import annotations

__all__: list[str] = []
