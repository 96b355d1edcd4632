"""Costs of a run, in counts: statements to the registry, processes, bytes that travel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from spark_butler.driver.backend import Backend, ReportOutcome
from spark_butler.driver.engine import execute_graph, plan_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import RunOptions
from spark_butler.model.work import UnitWork, WorkerContext
from tests.support.engine_harness import Case, Repo, WrappedBackend, make_graph
from tests.support.mock_night import insert_visits

_CCD = ("visit", "detector")

_PICKLED_BYTES = 6000

MakeRepo = Callable[[str], Repo]


def _build(helper: DirectButlerRepo) -> None:
    helper.add_task("a", dimensions=_CCD)
    helper.add_task("b", dimensions=_CCD)
    helper.add_task("c", dimensions=_CCD)


@contextmanager
def _counting_statements() -> Iterator[list[str]]:
    """Collect the statements to databases in files; butlers of workers have theirs in memory."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "gen3.sqlite3" in str(connection.engine.url):
            statements.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)


class _WeighingBackend(WrappedBackend):
    """Weighs what goes to workers."""

    nbytes = 0

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        self.nbytes += sum(len(group.payload) for work in batch for group in work.groups)
        super().run(context, batch, report)


def test_number_of_registry_statements_is_constant(make_repo: MakeRepo) -> None:
    counts = []
    for n_visits in (2, 10):
        with make_repo(f"repo{n_visits}").open() as helper:
            insert_visits(helper.butler, range(3, n_visits + 1), (1, 2))
            graph = make_graph(helper, Case(_build))
            assert len(graph) == 6 * n_visits
            with _counting_statements() as statements:
                result = execute_graph(graph, helper.butler, SerialBackend(), RunOptions())
            assert result.n_ingested == 18 * n_visits
            counts.append(len(statements))
    assert 0 < counts[0] <= counts[1] <= counts[0] + 5


def test_work_item_of_a_quantum_is_small(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        insert_visits(helper.butler, range(3, 11), (1, 2))
        graph = make_graph(helper, Case(_build))
        backend = _WeighingBackend(SerialBackend())
        result = execute_graph(graph, helper.butler, backend, RunOptions(group_by=("visit",)))
    assert not result.failed
    assert 0 < backend.nbytes < _PICKLED_BYTES * len(graph)


def test_group_uses_one_process(spark_backend: Backend, make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_build))
        options = RunOptions(group_by=("visit",))
        plan = plan_graph(graph, options, slots=spark_backend.slots)
        result = execute_graph(graph, helper.butler, spark_backend, options)
    assert not result.failed
    assert len(plan.groups) < len(graph)
    assert len({outcome.worker for outcome in result.outcomes.values()}) == len(plan.groups)
