"""Demonstration: a simulated night, an S3 server, and a repository.  Nothing here is part of the engine."""

from __future__ import annotations

__all__: list[str] = []
