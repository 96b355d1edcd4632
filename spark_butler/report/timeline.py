"""Lay attempts out on lanes, one for each slot of a host."""

from __future__ import annotations

__all__ = ["Lane", "busy_slots", "make_lanes"]

import dataclasses
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .record import Span

_SAME = 1e-3


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """What one slot of a host did, in order."""

    host: str
    """Name of the host."""

    number: int
    """Number of the slot on the host, from 1."""

    spans: list[Span]
    """The attempts, by time."""


def make_lanes(spans: Iterable[Span]) -> list[Lane]:
    """Deal attempts out to as few lanes for each host as hold them without overlap.

    A process is no lane: the quanta of each group may run in one of its own.

    Parameters
    ----------
    spans
        The attempts.
    """
    by_host: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_host[span.worker.rpartition(":")[0] or "?"].append(span)
    lanes: list[Lane] = []
    for host, found in sorted(by_host.items()):
        found.sort(key=lambda span: span.started)
        busy: list[tuple[float, int]] = []
        free: list[int] = []
        own: list[Lane] = []
        for span in found:
            while busy and busy[0][0] <= span.started + _SAME:
                heapq.heappush(free, heapq.heappop(busy)[1])
            if free:
                number = heapq.heappop(free)
            else:
                number = len(own)
                own.append(Lane(host, number + 1, []))
            own[number].spans.append(span)
            heapq.heappush(busy, (span.started + span.seconds, number))
        lanes.extend(own)
    return lanes


def busy_slots(
    spans: Iterable[Span], labels: Sequence[str], start: float, end: float, n_bins: int
) -> list[list[float]]:
    """Compute how many attempts ran at the same time, on the mean of each bin of time.

    Parameters
    ----------
    spans
        The attempts.
    labels
        Task labels.
    start, end
        First and last moment, in seconds since the epoch.
    n_bins
        Number of bins.

    Returns
    -------
    busy
        For each task label, the mean number in each bin.
    """
    busy = {label: [0.0] * n_bins for label in labels}
    # As slopes, so that a long attempt costs no more than a short one.
    change = {label: [0.0] * (n_bins + 2) for label in labels}
    width = (end - start) / n_bins or 1.0
    for span in spans:
        if span.label not in busy:
            continue
        a = min(max((span.started - start) / width, 0.0), float(n_bins))
        b = min(max((span.started + span.seconds - start) / width, 0.0), float(n_bins))
        first, last = math.floor(a), math.floor(b)
        own, slope = busy[span.label], change[span.label]
        if first == last:
            if first < n_bins:
                own[first] += b - a
            continue
        own[first] += first + 1 - a
        if last < n_bins:
            own[last] += b - last
        slope[first + 1] += 1
        slope[last] -= 1
    result = []
    for label in labels:
        level, row = 0.0, []
        for n in range(n_bins):
            level += change[label][n]
            row.append(round(level + busy[label][n], 3))
        result.append(row)
    return result
