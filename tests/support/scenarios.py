"""A repository with a pipeline, run by pipe_base's own executor and by ours, and the results."""

from __future__ import annotations

__all__ = ["ScenarioRepo", "read_outputs"]

import atexit
import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx
from lsst.daf.butler import Butler, DatasetType
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicConnectionConfig,
    MockDataset,
    get_mock_name,
)
from lsst.resources import ResourcePath

from spark_butler.driver.backend import Backend
from spark_butler.driver.engine import execute_graph
from spark_butler.model.options import RunOptions
from spark_butler.model.outcomes import RunResult
from spark_butler.model.work import TEMPORARIES_KEY
from tests.support.engine_harness import read_refs
from tests.support.temporaries_tasks import FunctionTask, ProbeConfig, ProbeMockTask

type Outputs = dict[tuple[str, tuple[int | str, ...]], Any]


@dataclasses.dataclass
class ScenarioRepo:
    """A repository with a pipeline to be built up."""

    repo: DirectButlerRepo
    n_detectors: int = 2
    n_runs: int = 0
    inserted: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    @contextlib.contextmanager
    def make(cls) -> Iterator[ScenarioRepo]:
        """Make an empty repository, as a copy of one that is made once in a process."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            root = Path(folder) / "repo"
            shutil.copytree(_make_template(), root)
            with Butler.from_config(root, writeable=True) as butler:
                yield cls(DirectButlerRepo(butler))

    @property
    def butler(self) -> Butler:
        """Butler of the repository."""
        return self.repo.butler

    def register(self, name: str, storage_class: str, dimensions: Sequence[str] = ("detector",)) -> None:
        """Define a mock dataset type in the repository before the pipeline does."""
        group = self.butler.dimensions.conform(dimensions)
        self.butler.registry.registerDatasetType(DatasetType(name, group, get_mock_name(storage_class)))

    def mock(self, label: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], **config: Any) -> None:
        """Add a mock task; see `connection`."""
        self._add(ProbeMockTask, label, inputs, outputs, True, config)

    def real(
        self,
        label: str,
        function: str,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        **config: Any,
    ) -> None:
        """Add a task that runs a function of the module `temporaries_tasks`."""
        self._add(FunctionTask, label, inputs, outputs, False, {"function": function, **config})

    def _add(
        self,
        task_class: type[Any],
        label: str,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        mock: bool,
        config: dict[str, Any],
    ) -> None:
        dimensions = config.pop("dimensions", ["detector"])
        init_inputs, init_outputs = config.pop("init_inputs", {}), config.pop("init_outputs", {})
        task_config = ProbeConfig()
        for name, value in config.items():
            setattr(task_config, name, value)
        self.repo.add_task(
            label,
            task_class=task_class,
            config=task_config,
            dimensions=dimensions,
            inputs={name: self.connection(value, mock, dimensions) for name, value in inputs.items()},
            outputs={name: self.connection(value, mock, dimensions) for name, value in outputs.items()},
            init_inputs={name: self.connection(value, mock, []) for name, value in init_inputs.items()},
            init_outputs={name: self.connection(value, mock, []) for name, value in init_outputs.items()},
        )

    @staticmethod
    def connection(value: Any, mock: bool, dimensions: Sequence[str]) -> DynamicConnectionConfig:
        """Describe a connection: its dataset type, or that with a storage class, or all its fields."""
        fields = value if isinstance(value, dict) else {"dataset_type_name": value}
        if isinstance(value, tuple):
            fields = {"dataset_type_name": value[0], "storage_class": value[1]}
        return DynamicConnectionConfig(
            **{
                "dimensions": list(dimensions),
                "mock_storage_class": mock,
                "storage_class": "ArrowAstropy" if mock else "StructuredDataDict",
                **fields,
            }
        )

    def make_graph(self) -> PredictedQuantumGraph:
        """Build a quantum graph for a new output run, with init-outputs written."""
        self.n_runs += 1
        self._insert_inputs()
        graph = self.repo.make_quantum_graph(output_run=f"run{self.n_runs}", insert_mocked_inputs=False)
        self.butler.collections.register(graph.header.output_run)
        # Not the package versions, which would take longer than the rest.
        graph.write_init_outputs(self.butler, skip_existing=False)
        graph.write_configs(self.butler)
        return graph

    def _insert_inputs(self) -> None:
        """Put what the pipeline reads and doesn't make."""
        graph = self.repo.pipeline_graph
        graph.resolve(self.butler.registry)
        for name, node in graph.iter_overall_inputs():
            assert node is not None
            self.butler.registry.registerDatasetType(node.dataset_type)
            if name not in self.inserted:
                self.inserted.add(name)
                where = {"where": f"detector <= {self.n_detectors}"} if "detector" in node.dimensions else {}
                self.repo.insert_datasets(node.dataset_type, False, instrument="Cam1", **where)

    def run_reference(self, **options: Any) -> Outputs:
        """Run the pipeline with everything stored, by pipe_base's own executor of single quanta."""
        graph = self.make_graph()
        executor = SingleQuantumExecutor(
            butler=self.butler.clone(run=graph.header.output_run), assume_no_existing_outputs=True, **options
        )
        order = list(networkx.topological_sort(graph.quantum_only_xgraph))
        quanta = graph.build_execution_quanta(order)
        for quantum_id in order:
            label = graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]
            executor.execute(graph.pipeline_graph.tasks[label], quanta[quantum_id], quantum_id=quantum_id)
        return read_outputs(self.butler, graph)

    def run(self, backend: Backend, **options: Any) -> tuple[PredictedQuantumGraph, RunResult]:
        """Run the pipeline by the engine."""
        graph = self.make_graph()
        return graph, execute_graph(graph, self.butler, backend, RunOptions(**options))

    def run_temporary(
        self, backend: Backend, temporary: Sequence[str], group_by: Any, **options: Any
    ) -> Outputs:
        """Run the pipeline by the engine with some dataset types temporary; all must succeed."""
        graph, result = self.run(backend, temporary=tuple(temporary), group_by=group_by, **options)
        assert not result.failed, [outcome.report.exceptionInfo for outcome in result.failed]
        assert result.outcomes.keys() == set(graph.quantum_only_xgraph)
        outputs = read_outputs(self.butler, graph)
        assert not {name for name, _ in outputs} & set(temporary)
        return outputs

    def compare(self, backend: Backend, stored: Sequence[str], *grains: Any, **options: Any) -> Outputs:
        """Run the pipeline by pipe_base, and for each way to group it with all but some types temporary."""
        expected = self.run_reference(**options)
        temporary = sorted(
            {
                edge.parent_dataset_type_name
                for task in self.repo.pipeline_graph.tasks.values()
                for edge in task.outputs.values()
            }
            - set(stored)
        )
        kept = {key: value for key, value in expected.items() if key[0] not in temporary}
        for group_by in grains:
            assert self.run_temporary(backend, temporary, group_by, **options) == kept
        assert {name for name, _ in kept} >= set(stored)
        return kept


@functools.cache
def _make_template() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = folder / "repo"
    with Butler.from_config(Butler.makeRepo(root), writeable=True) as butler:
        butler.import_(filename=ResourcePath("resource://lsst.daf.butler/tests/registry_data/base.yaml"))
    return root


def read_outputs(butler: Butler, graph: PredictedQuantumGraph) -> Outputs:
    """Read all that a run has left, without what must differ from run to run."""
    run = graph.header.output_run
    outputs: Outputs = {}
    for ref in read_refs(butler, graph, run):
        name = ref.datasetType.name
        content: Any = butler.get(ref)
        if isinstance(content, MockDataset):
            content = _anonymous(content.model_dump(mode="json"), run)
        elif name.endswith("_metadata"):
            quantum = content["quantum"]
            keys = [key for key in ("outputs", TEMPORARIES_KEY) if key in quantum]
            made = sum(len(quantum.getArray(key)) for key in keys)
            content = quantum.get("caveats", 0), made
        elif name.endswith(("_log", "_config")):
            content = type(content).__name__
        outputs[name, ref.dataId.required_values] = content
    return outputs


def _anonymous(value: Any, run: str) -> Any:
    """Take run names and dataset IDs out of a description."""
    if isinstance(value, list):
        return [_anonymous(item, run) for item in value]
    if not isinstance(value, dict):
        return value
    mine = value.get("run") == run
    return {
        key: None if mine and key in ("run", "dataset_id") else _anonymous(item, run)
        for key, item in value.items()
    }
