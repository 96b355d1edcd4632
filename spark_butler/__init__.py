"""Run Rubin pipelines on Apache Spark, with the Butler's datastore in an object store."""

from __future__ import annotations

__all__: list[str] = []
