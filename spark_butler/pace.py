"""How far ahead of the slots groups are given out."""

from __future__ import annotations

__all__ = ["Pace"]

import math

_MEMORY = 100
_ROUND_TRIP_SECONDS = 0.1
_BUNDLE_SECONDS = 2.0
_MAX_BUNDLE = 16


class Pace:
    """Says how many groups to give out, from the time that quanta have taken of late.

    Parameters
    ----------
    quanta_per_group
        Mean number of quanta in a group.

    Notes
    -----
    What has been given out waits in a queue that knows no urgency, so it
    should be just long enough that no slot falls idle before the driver hears
    that one is free.  In simulated runs of long quanta, twice as many groups as
    slots cost a sixth of the time.
    """

    def __init__(self, quanta_per_group: float):
        self._quanta_per_group = quanta_per_group
        self._n = 0
        self._mean = math.inf

    def note(self, seconds: float) -> None:
        """Take in how long a quantum has taken.

        Parameters
        ----------
        seconds
            Its time.
        """
        self._n = min(self._n + 1, _MEMORY)
        self._mean = seconds if self._n == 1 else self._mean + (seconds - self._mean) / self._n

    @property
    def _group_seconds(self) -> float:
        """Time of a group; infinite as long as nothing is known."""
        return max(self._mean * self._quanta_per_group, 1e-6)

    def limit(self, slots: int) -> int:
        """Find how many Spark tasks to have under way.

        Parameters
        ----------
        slots
            How many can run at the same time.
        """
        return slots + min(slots, math.ceil(slots * _ROUND_TRIP_SECONDS / self._group_seconds))

    def bundle(self, slots: int, n_ready: int) -> int:
        """Find how many groups one Spark task should run.

        Parameters
        ----------
        slots
            How many Spark tasks can run at the same time.
        n_ready
            How many groups are ready.
        """
        most = min(_MAX_BUNDLE, n_ready // (4 * slots), _BUNDLE_SECONDS / self._group_seconds)
        return max(1, int(most))
