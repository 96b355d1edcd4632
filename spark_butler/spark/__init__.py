"""Everything that imports PySpark: session, JVM, backend, worker entry, data source."""

from __future__ import annotations

__all__: list[str] = []
