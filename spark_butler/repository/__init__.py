"""Reading and writing the Butler registry for a run.

Runs in the driver, the only process that connects to the registry.
"""

from __future__ import annotations

__all__: list[str] = []
