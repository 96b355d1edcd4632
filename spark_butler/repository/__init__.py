"""The Butler registry as a run reads and writes it.

Runs in the driver, the only process to touch the registry.
"""

from __future__ import annotations

__all__: list[str] = []
