"""The engine against pipe_base's own executor, pipeline by pipeline, on every backend."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, DatasetType, DimensionUniverse
from lsst.pipe.base import QuantumSuccessCaveats
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicConnectionConfig,
    DynamicTestPipelineTaskConfig,
    MockStorageClass,
)

from spark_butler.driver.backend import Backend
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.work import WorkerContext
from tests.support.engine_harness import (
    Case,
    Observed,
    Repo,
    RepoCopies,
    execute_engine,
    execute_reference,
    make_graph,
    registered_files,
    run_engine,
    run_reference,
    stored_files,
)
from tests.support.engine_tasks import OneOutputTask
from tests.support.mock_night import insert_dimensions

_NO_WORK = "lsst.pipe.base.NoWorkFound"
_PARTIAL = "lsst.pipe.base.AnnotatedPartialOutputsError"
type _Config = DynamicTestPipelineTaskConfig

_VISIT = ("visit",)
_CCD = ("visit", "detector")


def _config(condition: str = "", exception: str = "builtins.ValueError", **more: object) -> _Config:
    return DynamicTestPipelineTaskConfig(fail_condition=condition, fail_exception=exception, **more)


def _input(name: str, dimensions: tuple[str, ...], **more: object) -> dict[str, DynamicConnectionConfig]:
    connection = DynamicConnectionConfig(dataset_type_name=name, dimensions=list(dimensions), **more)
    return {f"i_{name}": connection}


def _output(name: str, dimensions: tuple[str, ...], **more: object) -> dict[str, DynamicConnectionConfig]:
    connection = DynamicConnectionConfig(dataset_type_name=name, dimensions=list(dimensions), **more)
    return {f"o_{name}": connection}


def _chain(
    helper: DirectButlerRepo,
    first: _Config | None = None,
    second: _Config | None = None,
) -> None:
    helper.add_task("a", config=first, dimensions=_CCD)
    helper.add_task("b", config=second, dimensions=_CCD)
    helper.add_task("c", dimensions=_CCD)


def _gather(helper: DirectButlerRepo, config: _Config | None = None) -> None:
    helper.add_task("a", config=config, dimensions=_CCD, outputs=_output("x", _CCD))
    inputs = _input("x", _CCD, multiple=True)
    helper.add_task("b", dimensions=_VISIT, inputs=inputs, outputs=_output("y", _VISIT))
    helper.add_task("c", dimensions=_VISIT, inputs=_input("y", _VISIT), outputs=_output("z", _VISIT))


def _fan_out(helper: DirectButlerRepo) -> None:
    helper.add_task("a", dimensions=_VISIT, outputs=_output("x", _VISIT))
    helper.add_task("b", dimensions=_CCD, inputs=_input("x", _VISIT), outputs=_output("y", _CCD))


def _diamond(helper: DirectButlerRepo, left: _Config | None = None, minimum: int = 1) -> None:
    helper.add_task("a", dimensions=_CCD, outputs=_output("x", _CCD))
    helper.add_task("b", config=left, dimensions=_CCD, inputs=_input("x", _CCD), outputs=_output("l", _CCD))
    helper.add_task("c", dimensions=_CCD, inputs=_input("x", _CCD), outputs=_output("r", _CCD))
    inputs = _input("l", _CCD, minimum=minimum) | _input("r", _CCD)
    helper.add_task("d", dimensions=_CCD, inputs=inputs, outputs=_output("z", _CCD))


def _partly_failing(helper: DirectButlerRepo) -> None:
    helper.add_task("a", dimensions=_CCD, outputs=_output("x", _CCD))
    outputs = _output("y", _CCD) | _output("z", _CCD)
    helper.add_task(
        "b",
        task_class=OneOutputTask,
        config=_config(_FAIL),
        dimensions=_CCD,
        inputs=_input("x", _CCD),
        outputs=outputs,
    )
    helper.add_task("c", dimensions=_CCD, inputs=_input("y", _CCD), outputs=_output("w", _CCD))


def _init(helper: DirectButlerRepo) -> None:
    helper.add_task(
        "a",
        dimensions=_CCD,
        outputs=_output("x", _CCD),
        init_outputs={"schema": DynamicConnectionConfig(dataset_type_name="a_schema")},
    )
    helper.add_task(
        "b",
        dimensions=_CCD,
        inputs=_input("x", _CCD),
        outputs=_output("y", _CCD),
        init_inputs={"schema_in": DynamicConnectionConfig(dataset_type_name="a_schema")},
        init_outputs={"schema_out": DynamicConnectionConfig(dataset_type_name="b_schema")},
    )


def _prerequisite(helper: DirectButlerRepo) -> None:
    more: dict[str, Any] = {
        "prerequisite_inputs": _input("calib", ("detector",)) | _input("atlas", (), minimum=0),
    }
    helper.add_task("a", dimensions=_CCD, outputs=_output("x", _CCD), **more)
    helper.add_task("b", dimensions=_CCD, inputs=_input("x", _CCD), outputs=_output("y", _CCD), **more)


def _converting(helper: DirectButlerRepo) -> None:
    """The repository has another storage class for ``x`` than its maker, and than one of its readers."""
    mock = MockStorageClass.get_or_register_mock("ArrowAstropy").name
    dimensions = helper.butler.dimensions.conform(_CCD)
    for name in ("raw", "x"):
        helper.butler.registry.registerDatasetType(DatasetType(name, dimensions, mock))
    helper.insert_datasets(helper.butler.get_dataset_type("raw"))
    table = {"storage_class": "ArrowTable"}
    helper.add_task(
        "a", dimensions=_CCD, inputs=_input("raw", _CCD, **table), outputs=_output("x", _CCD, **table)
    )
    helper.add_task("b", dimensions=_CCD, inputs=_input("x", _CCD, **table), outputs=_output("y", _CCD))
    inputs = _input("x", _CCD, storage_class="ArrowAstropy")
    helper.add_task("c", dimensions=_CCD, inputs=inputs, outputs=_output("z", _CCD))


def _stored_otherwise(helper: DirectButlerRepo) -> None:
    """No task knows the storage class that the repository has for ``x``."""
    mock = MockStorageClass.get_or_register_mock("ArrowAstropy").name
    helper.butler.registry.registerDatasetType(DatasetType("x", helper.butler.dimensions.conform(_CCD), mock))
    table = {"storage_class": "ArrowTable"}
    helper.add_task("a", dimensions=_CCD, outputs=_output("x", _CCD, **table))
    helper.add_task("b", dimensions=_CCD, inputs=_input("x", _CCD, **table), outputs=_output("y", _CCD))


def _components(helper: DirectButlerRepo) -> None:
    """A reader takes a component of what its maker put as a whole."""
    helper.add_task(
        "a",
        dimensions=_CCD,
        outputs=_output("img", _CCD, storage_class="VisitImage"),
        inputs=_input("r", _CCD),
    )
    helper.add_task(
        "b",
        dimensions=_CCD,
        inputs=_input("img.sky_projection", _CCD, storage_class="SkyProjection"),
        outputs=_output("y", _CCD),
    )
    helper.add_task(
        "c",
        dimensions=_CCD,
        inputs=_input("img", _CCD, storage_class="VisitImage"),
        outputs=_output("z", _CCD),
    )


_FAIL = "visit=1 AND detector=2"

CASES = {
    "chain": Case(_chain),
    "gather": Case(_gather),
    "fan-out": Case(_fan_out),
    "diamond": Case(_diamond),
    "failure-in-chain": Case(lambda h: _chain(h, _config(_FAIL)), failed=1, blocked=2),
    "failure-before-gather": Case(lambda h: _gather(h, _config(_FAIL)), failed=1, blocked=2),
    "failure-in-diamond": Case(lambda h: _diamond(h, _config(_FAIL)), failed=1, blocked=1),
    "all-fail": Case(lambda h: _chain(h, _config("visit>0")), failed=4, blocked=8),
    "two-failures-with-the-same-dependents": Case(
        lambda h: _gather(h, _config("visit=1")), failed=2, blocked=2
    ),
    "outputs-before-failure": Case(_partly_failing, failed=1, blocked=1),
    "no-work-in-chain": Case(lambda h: _chain(h, _config(_FAIL, _NO_WORK)), no_work=3),
    "no-work-before-gather": Case(lambda h: _gather(h, _config(_FAIL, _NO_WORK)), no_work=1),
    "no-work-for-gather": Case(lambda h: _gather(h, _config("visit=1", _NO_WORK)), no_work=4),
    "optional-input-never-produced": Case(
        lambda h: _diamond(h, _config("visit>0", _NO_WORK), minimum=0), no_work=4
    ),
    "partial-outputs-are-failures": Case(
        lambda h: _chain(h, None, _config(_FAIL, _PARTIAL)), failed=1, blocked=1
    ),
    "partial-outputs-are-successes": Case(
        lambda h: _chain(h, None, _config(_FAIL, _PARTIAL)), {"raise_on_partial_outputs": False}, no_work=1
    ),
    "init-datasets": Case(_init),
    "prerequisites": Case(_prerequisite),
    "conversions": Case(_converting),
    "stored-otherwise": Case(_stored_otherwise),
    "components": Case(_components),
    "temporary-in-diamond": Case(_diamond, {"temporary": ("[xlr]",)}),
    "temporary-and-failure": Case(
        lambda h: _diamond(h, _config(_FAIL)), {"temporary": ("[xlr]",)}, failed=1, blocked=1
    ),
    "temporary-and-no-work": Case(
        lambda h: _chain(h, _config(_FAIL, _NO_WORK)), {"temporary": ("dataset_auto[12]",)}, no_work=3
    ),
    "temporary-optional-never-produced": Case(
        lambda h: _diamond(h, _config("visit>0", _NO_WORK), minimum=0),
        {"temporary": ("[xlr]",)},
        no_work=4,
    ),
    "temporary-and-partial-outputs": Case(
        lambda h: _chain(h, None, _config(_FAIL, _PARTIAL)),
        {"temporary": ("dataset_auto[12]",), "raise_on_partial_outputs": False},
        no_work=1,
    ),
    "temporary-conversions": Case(_converting, {"temporary": ("x",)}),
    "temporary-stored-otherwise": Case(_stored_otherwise, {"temporary": ("x",)}),
    "temporary-components": Case(_components, {"temporary": ("img",)}),
    "all-but-the-last-temporary": Case(_chain, {"store": ("dataset_auto3", "*_log")}),
    "signal": Case(
        lambda h: _chain(h, None, _config(_FAIL, fail_signal=signal.SIGKILL.value)),
        failed=1,
        blocked=1,
        unhurt=lambda h: _chain(h, None, _config(_FAIL)),
    ),
    "temporary-and-signal": Case(
        lambda h: _diamond(h, _config(_FAIL, fail_signal=signal.SIGABRT.value)),
        {"temporary": ("[xlr]",)},
        failed=1,
        blocked=1,
        unhurt=lambda h: _diamond(h, _config(_FAIL)),
    ),
}

_ON_SPARK = {
    *("chain", "diamond", "failure-before-gather", "outputs-before-failure", "no-work-before-gather"),
    *("partial-outputs-are-successes", "init-datasets", "conversions", "components"),
    *("temporary-in-diamond", "temporary-and-failure", "temporary-optional-never-produced"),
    *("temporary-conversions", "temporary-components", "signal", "temporary-and-signal"),
}
"""Cases that run on Spark at every time; the others do with the slow tests."""


class _Prepared:
    """A case made once for both backends, with the results of pipe_base."""

    def __init__(self, case: Case, make_repo: Callable[[str], Repo]):
        self.copies = RepoCopies(case, make_repo)
        if case.unhurt is not None:
            with make_repo("reference").open() as helper:
                self.expected = run_reference(helper, case)
        else:
            with self.copies.open("reference") as (butler, graph):
                self.expected = execute_reference(butler, graph, case)


_prepared: dict[str, _Prepared] = {}


def _prepare(name: str, make_repo: Callable[[str], Repo]) -> _Prepared:
    """Prepare a case once."""
    if name not in _prepared:
        _prepared[name] = _Prepared(CASES[name], make_repo)
    return _prepared[name]


def _check(case: Case, expected: Observed, observed: Observed, temporary: set[str]) -> None:
    assert observed.failed == expected.failed
    assert observed.blocked == expected.blocked
    assert (len(observed.failed), len(observed.blocked)) == (case.failed, case.blocked)
    datasets = {key: value for key, value in expected.datasets.items() if key[0] not in temporary}
    assert observed.datasets.keys() == datasets.keys()
    assert observed.datasets == datasets
    caveats = [value[1][0] for (name, _), value in datasets.items() if name.endswith("_metadata")]
    assert sum(bool(each & QuantumSuccessCaveats.NO_WORK) for each in caveats) == case.no_work


def check_engine(
    case: Case, expected: Observed, butler: Butler, graph: PredictedQuantumGraph, backend: Backend
) -> None:
    """Execute the graph of a case on a backend, and compare the outcome with pipe_base's."""
    observed = execute_engine(butler, graph, case, backend)
    assert stored_files(butler) == registered_files(butler)
    graph_types = set(graph.pipeline_graph.dataset_types)
    temporary = graph_types - {key[0] for key in observed.datasets} if _has_temporaries(case) else set()
    _check(case, expected, observed, temporary)
    assert not _has_temporaries(case) or len(temporary & {"dataset_auto1", "x", "img"}) == 1


# The serial backend has no isolation: a signal would kill this process.
_SERIAL = [
    pytest.param(name, "serial", id=f"serial-{name}") for name, case in CASES.items() if case.unhurt is None
]
_SPARK = [
    pytest.param(name, "spark", id=f"spark-{name}", marks=[] if name in _ON_SPARK else [pytest.mark.slow])
    for name in CASES
]


@pytest.mark.parametrize(("name", "backend"), _SERIAL + _SPARK, indirect=["backend"])
def test_engine_equals_pipe_base(name: str, backend: Backend, make_repo: Callable[[str], Repo]) -> None:
    prepared = _prepare(name, make_repo)
    with prepared.copies.open(type(backend).__name__) as (butler, graph):
        check_engine(CASES[name], prepared.expected, butler, graph, backend)


def _has_temporaries(case: Case) -> bool:
    return bool({"temporary", "store"} & case.options.keys())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["failure-before-gather", "temporary-and-no-work"])
def test_engine_equals_pipe_base_on_an_object_store(
    name: str,
    backend: Backend,
    make_repo: Callable[[str], Repo],
    s3_repo: Callable[[str], Path],
) -> None:
    case = CASES[name]
    expected = _prepare(name, make_repo).expected
    with Butler.from_config(str(s3_repo("engine")), writeable=True) as butler:
        insert_dimensions(butler)
        graph = make_graph(DirectButlerRepo(butler), case)
        check_engine(case, expected, butler, graph, backend)


def test_comparison_detects_a_difference(make_repo: Callable[[str], Repo]) -> None:
    one, other = CASES["chain"], CASES["no-work-in-chain"]
    expected = _prepare("chain", make_repo).expected
    with make_repo("other").open() as helper:
        observed = run_engine(helper, dataclasses.replace(other), SerialBackend())
    with pytest.raises(AssertionError):
        _check(one, expected, observed, set())
    changed = dict(expected.datasets)
    key = next(key for key in changed if key[0] == "dataset_auto3")
    changed[key] = ("StructuredDataDict", None)
    with pytest.raises(AssertionError):
        _check(one, expected, dataclasses.replace(expected, datasets=changed), set())


def test_function_is_applied_to_items_in_their_order(backend: Backend) -> None:
    context = WorkerContext({}, DimensionUniverse())
    results = backend.apply(context, _add_process, [3, 1, 2])
    assert [number for number, _ in results] == [4, 2, 3]
    assert (os.getpid() in {pid for _, pid in results}) == isinstance(backend, SerialBackend)


def _add_process(number: int) -> tuple[int, int]:
    return number + 1, os.getpid()


def test_spark_stages_are_named(
    spark_backend: Backend, spark: object, make_repo: Callable[[str], Repo]
) -> None:
    # Through a shuffle, so that one job has two stages.
    case = Case(_gather, {"temporary": ("x",), "group_by": "quantum"})
    with make_repo("named").open() as helper:
        run_engine(helper, case, spark_backend)
    tracker = spark.sparkContext.statusTracker()  # type: ignore[attr-defined]
    job_ids = tracker.getJobIdsForGroup(spark_backend._tag)  # type: ignore[attr-defined]
    jobs = [tracker.getJobInfo(job_id) for job_id in job_ids]
    names = [tracker.getStageInfo(stage).name for job in jobs for stage in job.stageIds]
    assert {name.partition(": ")[2].partition(" {instrument: 'Cam1', ")[0] for name in names} == {
        "a",
        "b",
        "c",
    }
    assert all(re.match(r"\d+ groups?: ", name) for name in names), names
    # Required dimensions only.
    assert not any("band" in name or "physical_filter" in name for name in names), names
