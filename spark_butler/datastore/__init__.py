"""Access to the files of a datastore: S3 clients, cache, prefetch, listing, quantum-backed butlers."""

from __future__ import annotations

__all__: list[str] = []
