"""Batch sizes: numbers of submitted groups, and of groups in one Spark task.  Runs in the driver."""

from __future__ import annotations

__all__ = ["BatchSizer"]

import math
from collections.abc import Mapping, Sequence

_MEMORY = 100
_ROUND_TRIP_SECONDS = 0.1
_BATCH_SECONDS = 2.0
_BATCHES_PER_SLOT = 4
_MAX_BATCH = 32


class BatchSizer:
    """Number of groups to submit, from the recent times of quanta.

    ``times`` has the mean times in seconds that the quanta of each task took in
    earlier runs, by task label.

    Notes
    -----
    Spark runs submitted groups in the order of submission, so an urgent group
    waits behind all groups in this queue.  The queue should be just long
    enough that no slot is idle until the driver submits more groups.
    """

    def __init__(self, quanta_per_group: float, times: Mapping[str, float] | None = None):
        self._quanta_per_group = quanta_per_group
        self._overall = _Mean()
        self._means = {label: _Mean(1, seconds) for label, seconds in (times or {}).items()}

    def record(self, label: str, seconds: float) -> None:
        """Record the time of a quantum."""
        self._overall.record(seconds)
        self._means.setdefault(label, _Mean()).record(seconds)

    def limit(self, slots: int) -> int:
        """Return how many Spark tasks to keep submitted."""
        group_seconds = max(self._overall.value * self._quanta_per_group, 1e-6)
        return slots + min(slots, math.ceil(slots * _ROUND_TRIP_SECONDS / group_seconds))

    def next_batch(self, labels: Sequence[str], slots: int, n_ready: int) -> int:
        """Return how many groups one Spark task should run; ``slots`` such tasks can run at once.

        They keep a worker busy for two seconds.  They are fewer if each slot would otherwise
        get fewer than four Spark tasks, and one if the time of a task is unknown.
        """
        if not all(label in self._means for label in labels):
            return 1
        seconds = max(sum(self._means[label].value for label in labels), 1e-6)
        most = min(_MAX_BATCH, n_ready // (_BATCHES_PER_SLOT * slots), _BATCH_SECONDS / seconds)
        return max(1, int(most))


class _Mean:
    """Approximate mean of the last numbers; infinite without numbers."""

    def __init__(self, n: int = 0, value: float = math.inf):
        self.value = value
        self._n = n

    def record(self, number: float) -> None:
        self._n = min(self._n + 1, _MEMORY)
        self.value = number if self._n == 1 else self.value + (number - self.value) / self._n
