"""Scan of an attempt that a worker sends for a provenance graph."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import ButlerLogRecords
from lsst.pipe.base import QuantumAttemptStatus, QuantumSuccessCaveats
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicTestPipelineTask,
    DynamicTestPipelineTaskConfig,
)

from spark_butler.provenance.scan import QuantumScan, scan_attempt
from tests.support.engine_harness import Case, Repo, make_graph
from tests.support.engine_tasks import BadConstructorTask, CallConfig, OneOutputTask

_CCD = ("visit", "detector")

MakeRepo = Callable[[str], Repo]


def _one_task(config: Any, task_class: type = DynamicTestPipelineTask) -> Callable[[DirectButlerRepo], None]:
    return lambda helper: helper.add_task("a", config=config, task_class=task_class, dimensions=_CCD)


def _scan(
    helper: DirectButlerRepo, graph: Any, *, with_logs: bool = True, **options: Any
) -> tuple[QuantumScan, dict[str, uuid.UUID], ButlerLogRecords]:
    """Run the first quantum of a graph and scan it; also give its outputs and logs."""
    quantum_id = min(graph.quanta_by_task["a"].items(), key=lambda item: item[0].required_values)[1]
    quantum = graph.build_execution_quanta([quantum_id])[quantum_id]
    node = graph.pipeline_graph.tasks["a"]
    logs, metadata, failure = ButlerLogRecords([]), None, None
    try:
        executor = SingleQuantumExecutor(butler=helper.butler, **options)
        metadata = executor.execute(node, quantum, quantum_id, log_records=logs).task_metadata
    except Exception as error:  # noqa: BLE001  (whatever the task raises)
        failure = error
    scan = scan_attempt(node, quantum, quantum_id, metadata, logs if with_logs else None, failure)
    outputs = {ref.datasetType.name: ref.id for refs in quantum.outputs.values() for ref in refs}
    return pickle.loads(pickle.dumps(scan)), outputs, logs


def test_success_is_scanned(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_one_task(None)))
        scan, outputs, logs = _scan(helper, graph)
    (attempt,) = scan.open()
    assert scan.status is attempt.model.status is QuantumAttemptStatus.SUCCESSFUL
    assert attempt.model.caveats == QuantumSuccessCaveats.NO_CAVEATS
    assert attempt.model.resource_usage is not None
    assert attempt.logs == list(logs)
    assert len(logs) > 0
    assert attempt.metadata is not None
    assert attempt.metadata["quantum"]["caveats"] == 0
    assert scan.produced == set(outputs.values())


def test_failure_is_scanned_with_what_it_had_written(make_repo: MakeRepo) -> None:
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_one_task(CallConfig(), OneOutputTask)))
        scan, outputs, _ = _scan(helper, graph)
    (attempt,) = scan.open()
    assert scan.status is QuantumAttemptStatus.FAILED
    assert attempt.model.exception is not None
    assert attempt.model.exception.message == "after the first output"
    assert attempt.metadata is not None, "failures have theirs in the log"
    assert scan.produced == {outputs["dataset_auto1"], outputs["a_log"]}


def test_failure_of_task_constructor_is_scanned(make_repo: MakeRepo, tmp_path: Path) -> None:
    config = CallConfig(folder=str(tmp_path / "sign"))
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_one_task(config, BadConstructorTask)))
        (tmp_path / "sign").mkdir()
        scan, outputs, _ = _scan(helper, graph)
    (attempt,) = scan.open()
    assert scan.status is QuantumAttemptStatus.FAILED
    assert attempt.model.exception is not None
    assert attempt.model.exception.type_name == "ArithmeticError"
    assert scan.produced == {outputs["a_log"]}


def test_earlier_attempts_come_with_the_logs(make_repo: MakeRepo) -> None:
    config = DynamicTestPipelineTaskConfig(fail_condition="visit=1")
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_one_task(config)))
        _scan(helper, graph)
        scan, _, _ = _scan(helper, graph, clobber_outputs=True)
    first, second = scan.open()
    assert [attempt.model.attempt for attempt in (first, second)] == [0, 1]
    assert first.logs
    assert second.logs
    assert first.logs != second.logs


def test_task_without_log_is_scanned(make_repo: MakeRepo) -> None:
    for fails, status in ((False, QuantumAttemptStatus.SUCCESSFUL), (True, QuantumAttemptStatus.FAILED)):
        config = DynamicTestPipelineTaskConfig(fail_condition="visit=1" if fails else "")
        config.saveLogOutput = False
        with make_repo(f"repo{fails}").open() as helper:
            graph = make_graph(helper, Case(_one_task(config)))
            scan, outputs, _ = _scan(helper, graph)
        assert scan.status is status
        assert scan.logs == b""
        assert scan.produced == (set() if fails else set(outputs.values()))


def test_nothing_at_all_is_an_aborted_attempt(make_repo: MakeRepo) -> None:
    config = DynamicTestPipelineTaskConfig(fail_condition="visit=1")
    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_one_task(config)))
        scan, _, _ = _scan(helper, graph, with_logs=False)
    (attempt,) = scan.open()
    assert scan.status is QuantumAttemptStatus.ABORTED
    assert (attempt.logs, attempt.metadata, scan.produced) == (None, None, frozenset())
    assert attempt.model.exception is not None
    assert attempt.model.exception.type_name == "ValueError"


@pytest.mark.parametrize("name", ["logs", "metadata"])
def test_blocks_can_be_read_by_the_models_of_pipe_base(name: str, make_repo: MakeRepo) -> None:
    import zstandard
    from lsst.pipe.base.quantum_graph import ProvenanceLogRecordsModel, ProvenanceTaskMetadataModel

    with make_repo("repo").open() as helper:
        graph = make_graph(helper, Case(_one_task(None)))
        scan, _, _ = _scan(helper, graph)
    model = ProvenanceLogRecordsModel if name == "logs" else ProvenanceTaskMetadataModel
    text = zstandard.ZstdDecompressor().decompress(getattr(scan, name))
    assert len(model.model_validate_json(text).attempts) == 1
