"""Measure what a slot does between quanta, and let outcomes take it to the driver."""

from __future__ import annotations

__all__ = ["SlotClock"]

import dataclasses
import time

from ..model.outcomes import QuantumOutcome
from .import_times import take_import_times


class SlotClock:
    """Measures the time that a slot spends on temporaries between its quanta.

    Times are those of the wall clock, since a child's and its parent's are
    compared.
    """

    def __init__(self) -> None:
        self._shuffle = 0.0
        self._until = 0.0
        self._until_told = 0.0

    def note_shuffle(self, began: float) -> None:
        """Note that temporaries were received or sent from then until now; no moment counts twice.

        Parameters
        ----------
        began
            When that began, in seconds since the epoch.
        """
        now = time.time()
        self._shuffle += max(0.0, now - max(began, self._until))
        self._until = now

    def stamp(self, outcome: QuantumOutcome) -> QuantumOutcome:
        """Add to an outcome what was measured since the last one.

        Parameters
        ----------
        outcome
            The outcome of a quantum of this slot.
        """
        if outcome.started:
            # A child may have begun its next quantum before its parent had sent on all of the one before.
            self._shuffle -= max(0.0, self._until_told - outcome.started)
        self._until_told = self._until
        imports = take_import_times()
        seconds = max(0.0, self._shuffle)
        if not imports and not seconds:
            return outcome
        self._shuffle -= seconds
        return dataclasses.replace(outcome, shuffle_seconds=seconds, imports=imports)
