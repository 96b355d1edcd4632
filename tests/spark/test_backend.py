"""Numbers of slots of the Spark backend, without a JVM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from spark_butler.spark import backend as module
from spark_butler.spark.backend import SparkBackend


class _Context:
    """A context of Spark that has some slots until its JVM ends."""

    def __init__(self, **settings: str):
        self._settings = settings
        self.n_slots: int | None = 3

    def getConf(self) -> dict[str, str]:
        return {name.replace("_", "."): value for name, value in self._settings.items()}

    @property
    def defaultParallelism(self) -> int:
        if self.n_slots is None:
            raise ConnectionRefusedError
        return self.n_slots


def _make(context: _Context) -> SparkBackend:
    return SparkBackend(cast("Any", SimpleNamespace(sparkContext=context)))


def test_elastic_cluster_gives_the_scheduler_twice_the_present_slots_and_the_status_the_present_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SLOTS_SECONDS", 0.0)
    context = _Context(spark_dynamicAllocation_enabled="true")
    backend = _make(context)
    assert (backend.slots, backend.present_slots) == (6, 3)
    context.n_slots = 5
    assert (backend.present_slots, backend.slots) == (5, 10)
    context.n_slots = None
    assert backend.present_slots == 5


def test_other_clusters_give_scheduler_and_status_the_same_slots() -> None:
    backend = _make(_Context())
    assert (backend.slots, backend.present_slots) == (3, 3)
