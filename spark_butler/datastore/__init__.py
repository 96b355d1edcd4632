"""Files and S3 below the Butler: clients, cache, prefetch, listing, the quantum butler."""

from __future__ import annotations

__all__: list[str] = []
