"""Late writes: reconciliation of the recorded sizes of files that two attempts may have written.

Runs in the driver.  An attempt that Spark gave up may continue for a while, and
may overwrite files after the outputs of its successor were ingested.  The content is
equivalent, but metadata and logs differ in size, and a butler refuses to read a file
whose size differs from its record.
"""

from __future__ import annotations

__all__ = ["LateWrites"]

import logging
import time
import uuid
from collections.abc import Collection

from lsst.daf.butler import DatasetRef
from lsst.pipe.base import QuantumAttemptStatus

from ..datastore.files import FileFinder, collect_files
from ..model.outcomes import QuantumOutcome
from ..text import brief
from .resume import RegistryUpdate

logger = logging.getLogger(__name__)

_AFTERLIFE_SECONDS = 120.0


class LateWrites:
    """Outcomes whose files may differ from their records.

    Parameters
    ----------
    existing
        IDs of the datasets that were in the output run before.
    cut_off
        Whether an earlier attempt at the run was killed, so that its workers
        may still be alive.
    """

    def __init__(self, existing: Collection[uuid.UUID], *, cut_off: bool = False):
        self._existing = existing
        self._until = time.monotonic() + _AFTERLIFE_SECONDS if cut_off else 0.0
        self._seen: set[uuid.UUID] = set()
        self._doubtful: dict[uuid.UUID, tuple[QuantumOutcome, list[DatasetRef]]] = {}

    def note(self, outcome: QuantumOutcome, predicted: list[DatasetRef]) -> None:
        """Record an outcome, which is not yet ingested, if its files are in doubt."""
        if (
            outcome.again
            or outcome.recovered
            or outcome.status is QuantumAttemptStatus.ABORTED
            or outcome.quantum_id in self._seen
            or time.monotonic() < self._until
        ):
            self._doubtful[outcome.quantum_id] = outcome, predicted
        self._seen.add(outcome.quantum_id)

    def reconcile(self, finder: FileFinder) -> list[RegistryUpdate]:
        """Return the registry updates for files in doubt."""
        if not self._doubtful:
            return []
        all_files = {}
        for quantum_id, (outcome, predicted) in self._doubtful.items():
            files = collect_files(outcome.records)
            if outcome.succeeded:
                late = [r for r in predicted if r.id not in outcome.outputs and r.id not in self._existing]
                files.update(finder.predict_files(late))
            all_files[quantum_id] = files
        places = [place for files in all_files.values() for parts in files.values() for place, _ in parts]
        try:
            finder.find(places)
        except Exception as exc:  # noqa: BLE001  (the run has ended; no error of the store may fail it)
            logger.warning("Could not check the files of %d quanta again: %s", len(all_files), brief(exc))
            return []
        updates: list[RegistryUpdate] = []
        for quantum_id, files in all_files.items():
            if changed := finder.find_changed(files):
                predicted = self._doubtful[quantum_id][1]
                records = finder.make_records(changed)
                updates.append(RegistryUpdate(quantum_id, predicted, frozenset(changed), records))
        if updates:
            logger.info("The files of %d quanta were written by more than one attempt.", len(updates))
        return updates
