"""Run a mock pipeline by pipe_base and by the engine, and compare the results."""

from __future__ import annotations

__all__ = [
    "RUN",
    "Case",
    "FaultInjector",
    "Observed",
    "Repo",
    "RepoCopies",
    "WrappedBackend",
    "execute_engine",
    "execute_reference",
    "make_graph",
    "observe",
    "read_refs",
    "registered_files",
    "run_engine",
    "run_reference",
    "snapshot",
    "stored_files",
]

import contextlib
import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetRef
from lsst.pipe.base import QuantumSuccessCaveats
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor, MPGraphExecutorError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import ExecutionStatus, Report
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.pipe.base.tests.mocks import DirectButlerRepo, MockDataset
from lsst.resources import ResourcePath

from spark_butler.driver.backend import Backend, ReportOutcome
from spark_butler.driver.engine import execute_graph
from spark_butler.driver.serial import SerialBackend
from spark_butler.model.options import RunOptions
from spark_butler.model.outcomes import QuantumOutcome, RunResult
from spark_butler.model.work import UnitWork, WorkerContext

RUN = "out/run"

type Key = tuple[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A pipeline and what is to be done with it."""

    build: Callable[[DirectButlerRepo], None]
    """Adds tasks, and datasets if any special ones are needed."""

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the run, for `RunOptions`."""

    failed: int = 0
    """Number of quanta that must fail."""

    blocked: int = 0
    """Number of quanta that must be blocked."""

    no_work: int = 0
    """Number of quanta that must end with no work to do."""

    unhurt: Callable[[DirectButlerRepo], None] | None = None
    """For a pipeline in which a task kills its process: the same, but that it raises."""

    insert_inputs: bool = True
    """Whether to make all overall inputs."""


@dataclasses.dataclass
class Observed:
    """State of a repository after a run."""

    datasets: dict[Key, Any]
    """Contents of all datasets in the output run, by dataset type and data ID."""

    failed: set[Key]
    """Quanta that failed."""

    blocked: set[Key]
    """Quanta that were blocked."""


class Repo:
    """A repository with the dimension records of pipe_base's tests, made from a template.

    Parameters
    ----------
    root
        Where to make it.
    template
        A repository to copy.
    """

    def __init__(self, root: Path, template: Path):
        shutil.copytree(template, root)
        self.root = root

    @contextlib.contextmanager
    def open(self) -> Iterator[DirectButlerRepo]:
        """Open it with an empty pipeline."""
        with Butler.from_config(str(self.root), writeable=True) as butler:
            yield DirectButlerRepo(butler)


class RepoCopies:
    """Copies of a repository with a case, whose graph is built once.

    Parameters
    ----------
    case
        The case.
    make_repo
        Makes a repository.
    """

    def __init__(self, case: Case, make_repo: Callable[[str], Repo]):
        repo = make_repo("original")
        with repo.open() as helper:
            self._graph = make_graph(helper, case)
        self._root = repo.root

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[Butler, PredictedQuantumGraph]]:
        """Make a copy, and open it with the graph."""
        root = self._root.with_name(name)
        shutil.copytree(self._root, root)
        with Butler.from_config(str(root), writeable=True) as butler:
            # Executors change the quanta of a graph.
            yield butler, copy.deepcopy(self._graph)


class WrappedBackend:
    """Backend that forwards to another, to be changed by a subclass.

    Parameters
    ----------
    inner
        The other.
    """

    def __init__(self, inner: Backend):
        self._inner = inner
        self.slots, self.present_slots = inner.slots, inner.present_slots

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        """Run groups.  See `Backend.run`."""
        self._inner.run(context, batch, report)

    def apply[T, R](self, context: WorkerContext, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Apply a function to items.  See `Backend.apply`."""
        return self._inner.apply(context, function, items)

    def is_alive(self) -> bool:
        """Whether it still runs.  See `Backend.is_alive`."""
        return self._inner.is_alive()

    def cancel(self) -> None:
        """Stop what runs.  See `Backend.cancel`."""
        self._inner.cancel()


class FaultInjector(SerialBackend):
    """Backend that replaces outcomes on their way to the driver.

    Parameters
    ----------
    inject
        Return the outcomes that arrive instead of one.
    """

    def __init__(self, inject: Callable[[QuantumOutcome], Iterator[QuantumOutcome]]):
        super().__init__()
        self._inject = inject

    def run(self, context: Any, batch: Any, report: Any) -> None:
        # Docstring inherited.

        def injected(outcome: QuantumOutcome) -> None:
            for each in self._inject(outcome):
                report(each)

        super().run(context, batch, injected)


def make_graph(
    helper: DirectButlerRepo, case: Case, *, without_signals: bool = False
) -> PredictedQuantumGraph:
    """Make the quantum graph of a case, its init-outputs and configurations."""
    case.build(helper)
    graph = helper.make_quantum_graph(output_run=RUN, insert_mocked_inputs=case.insert_inputs)
    helper.butler.collections.register(RUN)
    # Not the package versions: they would take a fifth of the time of all tests.
    graph.write_init_outputs(helper.butler, skip_existing=False)
    graph.write_configs(helper.butler)
    return graph


def run_reference(helper: DirectButlerRepo, case: Case) -> Observed:
    """Run a case with pipe_base's own executor and a full butler."""
    graph = make_graph(helper, dataclasses.replace(case, build=case.unhurt or case.build))
    return execute_reference(helper.butler, graph, case)


def execute_reference(butler: Butler, graph: PredictedQuantumGraph, case: Case) -> Observed:
    """Execute the graph of a case with pipe_base's own executor and a full butler."""
    executor = SingleQuantumExecutor(
        butler=butler,
        raise_on_partial_outputs=bool(case.options.get("raise_on_partial_outputs", True)),
    )
    runner = MPGraphExecutor(num_proc=1, timeout=600.0, quantum_executor=executor)
    with contextlib.suppress(MPGraphExecutorError):
        runner.execute(graph)
    butler.registry.refresh()
    report = runner.getReport()
    observed = Observed(
        snapshot(butler, graph),
        _quanta(report, ExecutionStatus.FAILURE),
        _quanta(report, ExecutionStatus.SKIPPED),
    )
    if case.unhurt is not None:
        # A process that is killed writes no log.
        for label, data_id in observed.failed:
            values = dict(data_id)
            del observed.datasets[f"{label}_log", ("Cam1", values["detector"], values["visit"])]
    return observed


def run_engine(helper: DirectButlerRepo, case: Case, backend: Backend) -> Observed:
    """Run a case with the engine."""
    return execute_engine(helper.butler, make_graph(helper, case), case, backend)


def execute_engine(butler: Butler, graph: PredictedQuantumGraph, case: Case, backend: Backend) -> Observed:
    """Execute the graph of a case with the engine."""
    result = execute_graph(graph, butler, backend, RunOptions(**case.options))
    return observe(butler, graph, result)


def observe(butler: Butler, graph: PredictedQuantumGraph, result: RunResult) -> Observed:
    """Look at what a run of the engine has left."""
    return Observed(
        snapshot(butler, graph),
        {_quantum_key(graph, outcome.quantum_id) for outcome in result.failed},
        {_quantum_key(graph, quantum_id) for quantum_id in result.blocked},
    )


def snapshot(butler: Butler, graph: PredictedQuantumGraph, run: str = RUN) -> dict[Key, Any]:
    """Read every dataset of a run, without what differs from run to run."""
    contents: dict[Key, Any] = {}
    for ref in read_refs(butler, graph, run):
        name, value = ref.datasetType.name, butler.get(ref)
        if isinstance(value, MockDataset):
            value = _without_ids(value.model_dump(mode="json"))
        elif name.endswith("_metadata"):
            value = QuantumSuccessCaveats(value["quantum"].get("caveats", 0)), sorted(value)
        elif name.endswith("_log"):
            value = bool(len(value))
        elif name.endswith("_config"):
            value = {k: v for k, v in value.toDict().items() if k != "fail_signal"}
        node = graph.pipeline_graph.dataset_types[name]
        contents[name, ref.dataId.required_values] = (str(node.storage_class_name), value)
    return contents


def read_refs(butler: Butler, graph: PredictedQuantumGraph, run: str) -> list[DatasetRef]:
    """Return the datasets of a graph that a run has in the registry, by one query."""
    if run not in butler.collections.query(run):
        return []
    names = set(graph.pipeline_graph.dataset_types)
    found = butler.query_all_datasets(run, find_first=False, limit=None)
    return [ref for ref in found if ref.datasetType.name in names]


def stored_files(butler: Butler, run: str = RUN) -> set[str]:
    """Names of all files of a run that are in the datastore, whatever the registry says."""
    (root,) = (root for root in butler.get_datastore_roots().values() if root is not None)
    found = ResourcePath.findFileResources([root.join(run, forceDirectory=True)])
    return {str(path.relative_to(root)) for path in found}


def registered_files(butler: Butler, run: str = RUN) -> set[str]:
    """Names of all files of a run that the registry knows."""
    (root,) = (root for root in butler.get_datastore_roots().values() if root is not None)
    return {str(butler.getURI(ref).relative_to(root)) for ref in butler.query_all_datasets(run)}


def _quanta(report: Report, status: ExecutionStatus) -> set[Key]:
    return {
        (str(each.taskLabel), _values(each.dataId)) for each in report.quantaReports if each.status is status
    }


def _quantum_key(graph: PredictedQuantumGraph, quantum_id: Any) -> Key:
    node = graph.quantum_only_xgraph.nodes[quantum_id]
    return node["task_label"], _values(dict(node["data_id"].mapping))


def _values(data_id: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((key, data_id[key]) for key in ("visit", "detector") if key in data_id)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(each) for key, each in value.items() if key != "dataset_id"}
    if isinstance(value, list):
        return sorted((_without_ids(each) for each in value), key=repr)
    return value
