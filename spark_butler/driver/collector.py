"""Collector of outcomes: passes outputs to the batch ingest, and cleans up at the end of a run.

Runs in the driver, in the thread of the scheduler.
"""

from __future__ import annotations

__all__ = ["Collector"]

import uuid
from collections.abc import Callable, Mapping
from typing import Self

from lsst.daf.butler import Butler, DatasetRef, DatasetType
from lsst.resources import ResourcePath

from ..datastore.files import FileFinder
from ..datastore.graph_butler import GraphButler
from ..model.outcomes import QuantumOutcome
from ..provenance.recorder import ProvenanceRecorder
from ..repository.output_ingest import IngestStream
from ..temporaries.scratch import remove_scratch
from ..text import best_effort
from .inventory import Inventory
from .late_writes import LateWrites


class Collector:
    """Collector of outcomes, which registers the outputs of quanta as they arrive.

    A context manager.  When the context ends, it removes the scratch folder,
    reconciles the recorded sizes of files that two attempts may have written,
    and waits for the last batch.

    Parameters
    ----------
    inventory
        The state of the output run before its quanta ran.
    predict_outputs
        Returns the stored outputs that the graph predicts for a quantum, and
        records which of them exist.
    scratch
        Folder of temporaries that were too large for a shuffle.
    check
        Called with the butler in each transaction that registers datasets.
    """

    def __init__(
        self,
        butler: Butler | GraphButler,
        dataset_types: Mapping[str, DatasetType],
        inventory: Inventory,
        predict_outputs: Callable[[uuid.UUID, tuple[uuid.UUID, ...]], list[DatasetRef]],
        *,
        recorder: ProvenanceRecorder | None = None,
        scratch: ResourcePath | None = None,
        check: Callable[[Butler], None] | None = None,
    ):
        self._inventory = inventory
        self._predict_outputs = predict_outputs
        self._recorder = recorder
        self._scratch = scratch
        self._finder = FileFinder(butler, dataset_types)
        self._late_writes = LateWrites(inventory.registered, cut_off=inventory.cut_off)
        self._packed = set(inventory.packed)
        self._stream: IngestStream | None = None
        if isinstance(butler, Butler):
            self._stream = IngestStream(butler, dataset_types, existing=inventory.registered, check=check)

    @property
    def n_ingested(self) -> int:
        """Number of datasets that were registered for the run."""
        return self._inventory.n_registered + (self._stream.n_ingested if self._stream is not None else 0)

    def ingest_lag(self) -> float:
        """Return for how many seconds the oldest dataset waits to be registered."""
        return self._stream.lag if self._stream is not None else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self._scratch is not None:
                with best_effort("Temporaries stay until `spark-butler cleanup` removes them"):
                    remove_scratch(self._scratch)
            if self._stream is not None:
                for change in self._late_writes.reconcile(self._finder):
                    self._stream.add(change.predicted, change.written, change.records)
        finally:
            if self._stream is not None:
                self._stream.close()

    def collect(self, outcome: QuantumOutcome) -> None:
        """Add the outputs of a quantum to the next batch.

        A quantum that was rerun to replace a lost temporary has a second outcome.
        """
        predicted = self._predict_outputs(outcome.quantum_id, outcome.outputs)
        if self._stream is not None:
            # No worker could remove the metadata and logs of an earlier attempt from a provenance graph file.
            replaced = self._packed.intersection(ref.id for ref in predicted)
            self._packed.difference_update(replaced)
            self._stream.add(predicted, outcome.outputs, outcome.records, (*outcome.removed, *replaced))
            self._late_writes.note(outcome, predicted)
        if self._recorder is not None:
            self._recorder.add(outcome)
