"""Access to the files of a datastore: S3 clients, cache, prefetch, listing, quantum-backed butlers.

Runs in all processes; the docstring of each module names its own.
"""

from __future__ import annotations

__all__: list[str] = []
