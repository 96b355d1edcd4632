"""Provenance of quanta: makes scans, writes provenance quantum graphs, and reads them back.

A scan is pipe_base's record of an executed quantum: its metadata, log and outputs.  Workers make the
scans; all other code runs in the driver.
"""

from __future__ import annotations

__all__: list[str] = []
