"""Factory of work items for workers, built from a quantum graph.  Runs in the driver."""

from __future__ import annotations

__all__ = ["WorkFactory", "export_input_records"]

import dataclasses
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Mapping, Sequence

import networkx
from lsst.daf.butler import DatasetRef, LimitedButler, Quantum
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .._daf_butler import export_records
from ..model.limits import Limits
from ..model.work import GroupPayload, GroupWork, QuantumWork, Route, UnitWork, all_inputs, all_outputs
from ..planning.plan import Group, Plan, Unit
from ..worker.notebook_classes import dump_by_name

_MANY_READERS = 4


class WorkFactory:
    """Factory of work items from the groups of a quantum graph.

    Parameters
    ----------
    xgraph
        Its quanta with the edges to respect.
    records
        Datastore records of the inputs of the whole graph, by name of the
        datastore.  With `None`, each quantum keeps its records of the graph.
    existing
        IDs of the datasets of the output run that were in the datastore before.
    clobber
        Quanta whose outputs of earlier attempts are replaced.
    forced
        Quanta that have succeeded before.  Their outputs are overwritten
        and never removed first, so that a failure can't lose them.
    """

    def __init__(  # noqa: PLR0913
        self,
        plan: Plan,
        graph: PredictedQuantumGraph,
        xgraph: networkx.DiGraph[uuid.UUID],
        *,
        temporary_types: Collection[str] = (),
        records: Mapping[str, DatastoreRecordData] | None = None,
        existing: Collection[uuid.UUID] = frozenset(),
        clobber: Container[uuid.UUID] = frozenset(),
        forced: Container[uuid.UUID] = frozenset(),
        limits: Mapping[str, Limits] | None = None,
    ):
        self._plan = plan
        self._graph = graph
        self._xgraph = xgraph
        self._temporary_types = frozenset(temporary_types)
        self._records = records
        self._existing = existing
        self._clobber = clobber
        self._forced = forced
        self.limits = dict(limits or {})
        self._shared = _find_shared(graph, xgraph, records or {})
        self._produced: dict[uuid.UUID, bool] = {}
        self._group_of = {q: group.index for group in plan.groups for q in group.quanta}
        self._outgoing: defaultdict[int, dict[uuid.UUID, tuple[int, ...]]] = defaultdict(dict)
        for crossing in plan.crossings:
            self._outgoing[crossing.producer][crossing.dataset_id] = crossing.consumers

    def note_outputs(self, quantum_id: uuid.UUID, written: Collection[uuid.UUID]) -> list[DatasetRef]:
        """Record which outputs of a quantum exist."""
        quantum = self._graph.build_execution_quanta([quantum_id])[quantum_id]
        predicted = [ref for ref in all_outputs(quantum) if ref.datasetType.name not in self._temporary_types]
        written = frozenset(written)
        self._produced.update((ref.id, ref.id in written) for ref in predicted)
        return predicted

    def make_work(
        self, units: Sequence[Unit], blocked: frozenset[uuid.UUID], done: frozenset[uuid.UUID] | None = None
    ) -> UnitWork:
        """Build the work item of a unit, or of several that one worker runs.

        Parameters
        ----------
        units
            The units; all units upstream have ended.  If there are several,
            each has one group, and these are sent as one.  A group of a later
            level is sent along with one of the level before it.
        blocked
            Their quanta that are not to run.
        done
            Their quanta that have succeeded and run again only for their
            temporaries, if a unit was submitted before.
        """
        groups = [self._plan.groups[index] for unit in units for level in unit.levels for index in level]
        unit = units[0]
        if len(unit.levels) == 1:
            joint = dataclasses.replace(groups[0], quanta=tuple(q for group in groups for q in group.quanta))
            return UnitWork(
                unit.index, (self._pack(joint, blocked, done, {}, (), n_groups=len(groups)),), (1,)
            )
        place = {index: n for level in unit.levels for n, index in enumerate(level)}
        carrier = {
            group.index: min(
                n for n in group.upstream if n in place and self._plan.groups[n].level == group.level - 1
            )
            for group in groups
            if group.level
        }
        receivers: defaultdict[int, list[int]] = defaultdict(list)
        for group in groups:
            for need in group.upstream & place.keys():
                receivers[need].append(group.index)
        works: dict[int, GroupWork] = {}
        for group in reversed(groups):
            carried = tuple(
                ((place[index],), works[index])
                for index in receivers[group.index]
                if carrier[index] == group.index
            )
            routes = {
                index: self._route(index, group.level, place, carrier) for index in receivers[group.index]
            }
            works[group.index] = self._pack(group, blocked, done, routes, carried)
        return UnitWork(
            unit.index, tuple(works[index] for index in unit.levels[0]), tuple(map(len, unit.levels))
        )

    def _route(
        self, index: int, level: int, place: Mapping[int, int], carrier: Mapping[int, int]
    ) -> tuple[int, ...]:
        """Return the positions on the route from a level to a group."""
        route = [place[index]]
        while self._plan.groups[index].level > level + 1:
            index = carrier[index]
            route.append(place[index])
        return tuple(reversed(route))

    def _pack(
        self,
        group: Group,
        blocked: frozenset[uuid.UUID],
        done: frozenset[uuid.UUID] | None,
        routes: Mapping[int, Route],
        carried: tuple[tuple[Route, GroupWork], ...],
        *,
        n_groups: int = 1,
    ) -> GroupWork:
        """Return the work item of a group, with its content pickled."""
        content = self._make_content(group, blocked, done or frozenset(), routes.keys())
        tasks = dict.fromkeys(self._plan.task_labels[q] for q in group.quanta)
        data_id = self._xgraph.nodes[group.quanta[0]]["data_id"]
        joined = f"{n_groups} joined, " if n_groups > 1 else ""
        required = ", ".join(f"{name}: {value!r}" for name, value in data_id.required.items())
        return GroupWork(
            group.index,
            f"{joined}{' -> '.join(tasks)} {{{required}}}",
            dump_by_name(content),
            max(self.limits[label].memory or 0 if label in self.limits else 0 for label in tasks),
            done is not None,
            dict(routes),
            carried,
        )

    def _make_content(
        self,
        group: Group,
        blocked: frozenset[uuid.UUID],
        done: frozenset[uuid.UUID],
        receivers: Collection[int],
    ) -> GroupPayload:
        """Build the content of a group: its quanta, and the driver's records of their datasets."""
        quantum_ids = [quantum_id for quantum_id in group.quanta if quantum_id not in blocked]
        positions = {quantum_id: position for position, quantum_id in enumerate(quantum_ids)}
        quanta = self._graph.build_execution_quanta(quantum_ids)
        if self._records is not None:
            quanta = {quantum_id: _without_records(quantum) for quantum_id, quantum in quanta.items()}
        works = tuple(
            QuantumWork(
                quantum_id,
                self._xgraph.nodes[quantum_id]["task_label"],
                quanta[quantum_id],
                tuple(positions[q] for q in self._xgraph.predecessors(quantum_id) if q in positions),
                tuple(q for q in self._xgraph.predecessors(quantum_id) if self._is_sibling(q, group)),
                may_exist=quantum_id not in self._forced
                and any(ref.id in self._existing for ref in all_outputs(quanta[quantum_id])),
                clobber=quantum_id in self._clobber,
                forced=quantum_id in self._forced,
            )
            for quantum_id in quantum_ids
        )
        inputs = [ref for quantum in quanta.values() for ref in all_inputs(quantum)]
        outputs = [ref for quantum in quanta.values() for ref in all_outputs(quantum)]
        own = {ref.id for ref in outputs}
        known = {ref.id: self._produced[ref.id] for ref in inputs if ref.id in self._produced}
        records: dict[str, DatastoreRecordData] = {}
        if self._records is not None:
            needed = {ref.id for ref in inputs} - own - known.keys()
            for name, data in self._records.items():
                if (subset := data.subset(needed)) is not None:
                    records[name] = subset
                    known.update(dict.fromkeys(subset.records, True))
            known.update((ref.id, self._produced.get(ref.id, ref.id in self._existing)) for ref in outputs)
        consumers = Counter(
            dataset_id
            for quantum in quanta.values()
            for dataset_id in {
                ref.id
                for refs in quantum.inputs.values()
                for ref in refs
                if ref.datasetType.nameAndComponent()[0] in self._temporary_types
            }
        )
        return GroupPayload(
            works,
            records,
            frozenset(dataset_id for data in records.values() for dataset_id in data.records) & self._shared,
            known,
            dict(consumers),
            outgoing=self._outgoing.get(group.index, {}),
            senders=frozenset(n for n in group.upstream if self._plan.groups[n].unit == group.unit),
            receivers={index: self._reads(index, own) for index in receivers},
            done=frozenset(positions[quantum_id] for quantum_id in quantum_ids if quantum_id in done),
        )

    def _is_sibling(self, quantum_id: uuid.UUID, group: Group) -> bool:
        """Return whether a quantum belongs to another group of the same unit."""
        other = self._plan.groups[self._group_of[quantum_id]]
        return other.unit == group.unit and other.index != group.index

    def _reads(self, index: int, made: Collection[uuid.UUID]) -> frozenset[uuid.UUID]:
        """Return the IDs of existing stored datasets that a group reads."""
        return frozenset(
            ref.id
            for quantum in self._graph.build_execution_quanta(self._plan.groups[index].quanta).values()
            for ref in all_inputs(quantum)
            if ref.id in made and ref.datasetType.nameAndComponent()[0] not in self._temporary_types
        )


def export_input_records(
    butler: LimitedButler, graph: PredictedQuantumGraph, xgraph: networkx.DiGraph[uuid.UUID]
) -> dict[str, DatastoreRecordData]:
    """Read the records of all inputs that no quantum of a graph makes, by name of the datastore."""
    quanta = graph.build_execution_quanta(xgraph.nodes)
    made = {ref.id for quantum in quanta.values() for ref in all_outputs(quantum)}
    refs = {ref.id: ref for quantum in quanta.values() for ref in all_inputs(quantum) if ref.id not in made}
    whole = [ref.makeCompositeRef() if ref.isComponent() else ref for ref in refs.values()]
    return export_records(butler, whole)


def _find_shared(
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    records: Mapping[str, DatastoreRecordData],
) -> frozenset[uuid.UUID]:
    """Return the inputs that many quanta read, such as calibrations."""
    bipartite = graph.bipartite_xgraph
    return frozenset(
        dataset_id
        for data in records.values()
        for dataset_id in data.records
        if dataset_id in bipartite
        and sum(quantum_id in xgraph for quantum_id in bipartite.successors(dataset_id)) >= _MANY_READERS
    )


def _without_records(quantum: Quantum) -> Quantum:
    """Return a copy of a quantum without its datastore records, which its group holds."""
    if not quantum.datastore_records:
        return quantum
    return Quantum(
        taskName=quantum.taskName,
        taskClass=quantum.taskClass,
        dataId=quantum.dataId,
        initInputs=quantum.initInputs,
        inputs=quantum.inputs,
        outputs=quantum.outputs,
    )
