"""Descriptions of cameras, and the frames that they describe.  The driver and workers read both."""

from __future__ import annotations

__all__: tuple[str, ...] = ()
