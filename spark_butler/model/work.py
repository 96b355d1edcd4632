"""Work items: the context of a run and groups of quanta, which the driver sends to workers."""

from __future__ import annotations

__all__ = [
    "TEMPORARIES_KEY",
    "EncodedTemporary",
    "GroupPayload",
    "GroupWork",
    "PackedTasks",
    "QuantumWork",
    "Route",
    "UnitWork",
    "WorkerContext",
    "all_inputs",
    "all_outputs",
]

import dataclasses
import pickle
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lsst.daf.butler import Config, DatasetRef, DatasetType, DimensionUniverse, Quantum
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import ExecutionResources
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor

from ..codecs import EncodedObject
from .limits import Limits
from .options import Isolation

NO_LIMITS = Limits(retries=0)

TEMPORARIES_KEY = "temporaries"
"""Key under which the metadata of a quantum list the temporaries that it has put."""

type Route = tuple[int, ...]
"""The partitions that a shuffle record visits, one at each following level of its Spark job."""


class PackedTasks(Mapping[str, TaskNode]):
    """Tasks by label, unpickled when the first of them is used."""

    def __init__(self, data: bytes, modules: tuple[str, ...]):
        self._data = data
        self._tasks: Mapping[str, TaskNode] | None = None
        self.modules = modules
        """Names of the modules that the tasks are in."""

    def open(self) -> Mapping[str, TaskNode]:
        """Unpickle the tasks, once for a process and its later children."""
        if self._tasks is None:
            self._tasks = pickle.loads(self._data)
        assert self._tasks is not None
        return self._tasks

    def __getitem__(self, label: str) -> TaskNode:
        return self.open()[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.open())

    def __len__(self) -> int:
        return len(self.open())


@dataclasses.dataclass(frozen=True)
class WorkerContext:
    """The common part of all groups of a run; sent to each worker once.

    It holds no secrets and no way to reach the registry.
    """

    task_nodes: Mapping[str, TaskNode]
    """Tasks and their configurations, by label."""

    universe: DimensionUniverse

    butler_config: Config | None = None
    """Configuration of the datastore.  `None` when `quantum_executor` brings its own butler."""

    dataset_types: Mapping[str, DatasetType] = dataclasses.field(default_factory=dict)
    """Definitions in the repository of the dataset types of the graph, by name."""

    temporary_types: frozenset[str] = frozenset()
    """Names of the dataset types that are temporary."""

    quantum_executor: QuantumExecutor | None = None
    """Executor that the caller provides; workers use it unchanged."""

    resources: ExecutionResources | None = None
    raise_on_partial_outputs: bool = True

    enable_lsst_debug: bool = False
    """Whether to import the user's ``debug`` module."""

    fail_fast: bool = False

    limits: Mapping[str, Limits] = dataclasses.field(default_factory=dict)
    """Limits of the quanta, by label; a label without an entry has no limits and no retries."""

    isolation: Isolation = "group"
    """Unit that gets a process of its own: a group, a quantum, or none."""

    provenance: bool = False
    """Whether outcomes contain the scans for a provenance graph."""

    log_state: Sequence[Any] = ()
    """Logging set-up of the driver, as `lsst.daf.butler.cli.cliLog.CliLog` records it."""

    scratch: str = ""
    """Address of the run's folder in the object store for temporaries that a shuffle can't take."""

    max_shuffle_bytes: int | None = None
    """Length of a serialized temporary, all its copies together, from which on it goes to `scratch`."""

    log_requests: str = ""
    """Address of the folder with requests for logs of running quanta."""

    stores: tuple[str, ...] = ()
    """Addresses of the places where the datastores keep files."""

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables, without secrets, that a worker sets unless they are set already."""

    def limits_of(self, label: str) -> Limits:
        """Return the limits of the quanta of a task."""
        return self.limits.get(label, NO_LIMITS)


@dataclasses.dataclass(frozen=True, slots=True)
class QuantumWork:
    """One quantum of a group."""

    quantum_id: uuid.UUID
    task_label: str
    quantum: Quantum

    upstream: tuple[int, ...] = ()
    """Positions in the group of the quanta that must succeed before this one."""

    needs: tuple[uuid.UUID, ...] = ()
    """Quanta of other groups of the same unit that must succeed before this one."""

    may_exist: bool = False
    """Whether outputs of an earlier attempt may exist."""

    clobber: bool = False
    """Whether such outputs are replaced; otherwise they are an error."""

    forced: bool = False
    """Whether it has succeeded in an earlier run: its outputs are overwritten, but never removed first."""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupPayload:
    """The work of one group."""

    quanta: tuple[QuantumWork, ...]
    """The quanta, in the order in which they run."""

    records: dict[str, DatastoreRecordData] = dataclasses.field(default_factory=dict)
    """Datastore records of the inputs, by name of the datastore."""

    shared: frozenset[uuid.UUID] = frozenset()
    """Inputs that many quanta of the run read."""

    known: dict[uuid.UUID, bool] = dataclasses.field(default_factory=dict)
    """For each dataset whose state the driver knows, whether it exists."""

    consumers: dict[uuid.UUID, int] = dataclasses.field(default_factory=dict)
    """Number of quanta of the group that read each temporary."""

    outgoing: dict[uuid.UUID, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Temporaries that other groups read, with the numbers of these groups."""

    senders: frozenset[int] = frozenset()
    """Groups of the same unit on which this group depends."""

    receivers: dict[int, frozenset[uuid.UUID]] = dataclasses.field(default_factory=dict)
    """Groups of the same unit that depend on this group, with the stored datasets that they read from it."""

    done: frozenset[int] = frozenset()
    """Positions of the quanta that the driver knows to have succeeded."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedTemporary:
    """A temporary that is sent to the groups that read it."""

    dataset_id: uuid.UUID
    """ID of the dataset."""

    encoded: EncodedObject
    """The serialized dataset, whose big buffers are still the dataset's own."""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupWork:
    """A group as it travels to a worker."""

    index: int
    """Position of the group in the plan."""

    summary: str
    """Task labels and data ID, for people."""

    payload: bytes
    """The pickled `GroupPayload`, opened only where it runs."""

    memory: int = 0
    """Memory that its quanta request, in bytes; 0 without a request."""

    again: bool = False
    """Whether the group was submitted before and its worker was lost."""

    routes: Mapping[int, Route] = dataclasses.field(default_factory=dict)
    """The routes to the groups of the same unit that depend on this group."""

    carried: tuple[tuple[Route, GroupWork], ...] = ()
    """Work of groups of the next level, which this group sends with its temporaries."""

    def open(self) -> GroupPayload:
        """Unpickle the content; the `WorkerContext` must have been unpickled before."""
        content = pickle.loads(self.payload)
        assert isinstance(content, GroupPayload)
        return content


@dataclasses.dataclass(frozen=True, slots=True)
class UnitWork:
    """A unit as it travels to workers: the groups of its first level, which carry all others.

    A batch travels in the same way, as one group with the quanta of all its
    groups.
    """

    index: int
    """Position of the unit, or of the first of a batch, in the plan."""

    groups: tuple[GroupWork, ...]
    """The groups of its first level."""

    widths: tuple[int, ...]
    """Number of groups at each level."""


def all_inputs(quantum: Quantum) -> Iterator[DatasetRef]:
    """Yield all datasets that a quantum reads, init-inputs included."""
    for refs in quantum.inputs.values():
        yield from refs
    yield from quantum.initInputs.values()


def all_outputs(quantum: Quantum) -> Iterator[DatasetRef]:
    """Yield all datasets that a quantum may make."""
    for refs in quantum.outputs.values():
        yield from refs
