"""Read provenance graphs, without what differs from run to run."""

from __future__ import annotations

__all__ = ["Seen", "look", "look_at"]

import dataclasses
from pathlib import Path
from typing import Any

from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_graph import ProvenanceQuantumGraphReader

from tests.support.zip_seek import seek_by_reading


@dataclasses.dataclass(frozen=True)
class Seen:
    """Entry of a provenance graph for a quantum."""

    status: str
    """Status of the last attempt."""

    attempts: tuple[tuple[str, str | None, bool, bool], ...]
    """Status and exception of each attempt, and whether there are a log and metadata."""

    produced: frozenset[str]
    """Dataset types of the outputs that were produced."""

    caveats: int | None
    """Qualifications of a success."""

    metadata: tuple[str, ...]
    """Names in the metadata of the last attempt."""

    messages: tuple[str, ...]
    """Where the records of the last log come from."""


def look(path: Path | str) -> dict[tuple[Any, ...], Seen]:
    """Read all that a provenance graph says, by task and data ID."""
    with seek_by_reading(), ProvenanceQuantumGraphReader.open(str(path)) as reader:
        reader.read_full_graph()
        return {
            (label, *data_id.required_values): _see(reader, quantum_id)
            for label, quanta in reader.graph.quanta_by_task.items()
            for data_id, quantum_id in quanta.items()
        }


def look_at(path: Path | str, label: str, visit: int, detector: int) -> Seen:
    """Read what a provenance graph says of one quantum."""
    return look(path)[label, "Cam1", detector, visit]


def _see(reader: ProvenanceQuantumGraphReader, quantum_id: Any) -> Seen:
    graph = reader.graph
    info = graph.bipartite_xgraph.nodes[quantum_id]
    logs = reader.fetch_logs([quantum_id]).get(quantum_id)
    metadata = reader.fetch_metadata([quantum_id]).get(quantum_id)
    n_attempts = len(info["attempts"])
    logs, metadata = logs or [None] * n_attempts, metadata or [None] * n_attempts
    assert [attempt.attempt for attempt in info["attempts"]] == list(range(n_attempts))
    assert len(logs) == len(metadata) == n_attempts
    outputs = [graph.bipartite_xgraph.nodes[n] for n in graph.bipartite_xgraph.successors(quantum_id)]
    produced = {node["dataset_type_name"] for node in outputs if node["produced"]}
    status: QuantumAttemptStatus = info["status"]
    assert status.has_log == any(name.endswith("_log") for name in produced)
    assert status.has_metadata == any(name.endswith("_metadata") for name in produced)
    last_log, last_metadata = (logs[-1], metadata[-1]) if n_attempts else (None, None)
    if status.has_log:
        assert last_log is not None
    if status.has_metadata:
        assert last_metadata is not None
    return Seen(
        status.name,
        tuple(
            (
                attempt.status.name,
                attempt.exception and attempt.exception.type_name,
                log is not None,
                each is not None,
            )
            for attempt, log, each in zip(info["attempts"], logs, metadata, strict=True)
        ),
        frozenset(produced),
        None if info["caveats"] is None else info["caveats"].value,
        tuple(sorted(last_metadata)) if last_metadata is not None else (),
        tuple(record.name for record in last_log or () if record.name.startswith("lsst.")),
    )
