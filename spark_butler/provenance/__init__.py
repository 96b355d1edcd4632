"""Scans of quanta, and provenance graphs that are recorded and read back.

Workers make the scans; all other code runs in the driver.
"""

from __future__ import annotations

__all__: list[str] = []
