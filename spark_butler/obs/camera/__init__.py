"""Descriptions of cameras, and the frames that they describe.

The driver reads both to ingest raw frames; the tasks read them in the worker or child process.
"""

from __future__ import annotations

__all__: tuple[str, ...] = ()
