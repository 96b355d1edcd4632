"""A pytest plugin that puts `SparkGraphExecutor` in the place of pipe_base's multiprocess executor.

With ``SPARK_PLUG=all`` in the environment a single process, too, means Spark,
so that every quantum of the tests runs there.  Tests that run quanta one after
another by themselves have that done by Spark, too.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Iterator
from typing import Any

import lsst.pipe.base.mp_graph_executor
import lsst.pipe.base.separable_pipeline_executor
import pytest
from lsst.daf.butler import QuantumBackedButler
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from spark_butler.driver.scheduler import Scheduler
from spark_butler.driver.work_factory import WorkFactory
from spark_butler.graph_executor import SparkGraphExecutor
from spark_butler.model.outcomes import QuantumOutcome
from spark_butler.model.work import WorkerContext
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import Plan
from spark_butler.planning.sketch import sketch_graph
from spark_butler.spark.backend import SparkBackend
from spark_butler.spark.session import make_session


class EverythingOnSpark(SparkGraphExecutor):
    """Leaves the number of processes to Spark where one was asked for."""

    def __init__(self, *, num_proc: int | None = None, **kwargs: Any):
        super().__init__(num_proc=None if num_proc == 1 else num_proc, **kwargs)


_EXECUTOR = EverythingOnSpark if os.environ.get("SPARK_PLUG") == "all" else SparkGraphExecutor
_counts = {"executed": 0}
_execute = SparkGraphExecutor._run


def _run(self: SparkGraphExecutor, *args: Any) -> Any:
    _counts["executed"] += 1
    return _execute(self, *args)


def _as_one_group(plan: Plan) -> Plan:
    """Have one process run all quanta, as the tests expect that look for what ran there before."""
    quanta = tuple(quantum_id for group in plan.groups for quantum_id in group.quanta)
    group = dataclasses.replace(plan.groups[0], quanta=quanta)
    return dataclasses.replace(plan, groups=(group,), units=plan.units[:1])


def _iter_graph_execution(
    self: Any, repo: str, qg: Any, raise_on_partial_outputs: bool, is_retry: bool = False
) -> Iterator[uuid.UUID]:
    """Execute a graph as the method of `AggregatorTestCase` does, but on Spark."""
    _counts["executed"] += 1
    init_butler = self.enterContext(qg.make_init_qbb(repo))
    qg.init_output_run(init_butler)
    qg.build_execution_quanta()
    universe = qg.pipeline_graph.universe
    executor = SingleQuantumExecutor(
        limited_butler_factory=lambda quantum: QuantumBackedButler.initialize(repo, quantum, universe),
        assume_no_existing_outputs=not is_retry,
        skip_existing=is_retry,
        clobber_outputs=is_retry,
        raise_on_partial_outputs=raise_on_partial_outputs,
    )
    xgraph = qg.quantum_only_xgraph
    outcomes: list[QuantumOutcome] = []
    backend = SparkBackend(make_session())
    plan = _as_one_group(cut_graph(sketch_graph(qg, xgraph), group_by="quantum"))
    maker = WorkFactory(plan, qg, xgraph)
    dispatcher = Scheduler(plan, xgraph, backend, maker.make_work, on_outcome=outcomes.append)
    dispatcher.run(
        WorkerContext(
            task_nodes=dict(qg.pipeline_graph.tasks),
            universe=universe,
            quantum_executor=executor,
            log_state=tuple(CliLog.configState),
        )
    )
    backend.close()
    return iter([outcome.quantum_id for outcome in outcomes])


# Whichever of them a test reads the name from, and whatever has been imported before.
for _module in (lsst.pipe.base.mp_graph_executor, lsst.pipe.base.separable_pipeline_executor):
    _module.MPGraphExecutor = _EXECUTOR  # type: ignore[attr-defined]
SparkGraphExecutor._run = _run  # type: ignore[assignment,method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have Spark do what tests of provenance do by themselves."""
    for item in items:
        test_case: Any = getattr(item, "cls", None)
        if hasattr(test_case, "iter_graph_execution"):
            test_case.iter_graph_execution = _iter_graph_execution


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many graphs ran on Spark, so that a patch that misses its place is seen."""
    terminalreporter.write_line(f"graphs executed on Spark: {_counts['executed']}")
