from __future__ import annotations

import uuid
from collections.abc import Callable, Collection

import pytest
from lsst.pipe.base.tests.mocks import DynamicConnectionConfig

from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import RunOptions
from spark_butler.planning.plan import Plan
from spark_butler.report import Progress
from tests.support.engine_harness import Case, Repo, make_graph


class _Broken(Progress):
    n_calls = 0

    def on_plan(self, plan: Plan) -> None:
        self.n_calls += 1
        raise RuntimeError("no terminal")

    def on_dispatch(self, quantum_ids: Collection[uuid.UUID]) -> None:
        self.n_calls += 1


def test_observer_that_raised_is_not_called_again(
    make_repo: Callable[[str], Repo], caplog: pytest.LogCaptureFixture
) -> None:
    broken = _Broken()
    with make_repo("repo").open() as helper:
        output = DynamicConnectionConfig(dataset_type_name="x", dimensions=["visit", "detector"])
        helper.add_task("a", dimensions=["visit", "detector"], outputs={"x": output})
        graph = make_graph(helper, Case(lambda each: None))
        result = execute_graph(graph, helper.butler, SerialBackend(), RunOptions(), observer=broken)
    assert not result.failed
    assert broken.n_calls == 1
    assert caplog.text.count("_Broken no longer observes the run: no terminal") == 1
