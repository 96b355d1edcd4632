"""Counts of what goes to and from object stores.

Runs in workers and their children; the driver adds the counts up.
"""

from __future__ import annotations

__all__ = ["NO_TRAFFIC", "Traffic", "TrafficCounter"]

import dataclasses
import threading
from collections import Counter
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """Requests and bytes; they can be added and subtracted."""

    requests: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Number of requests by HTTP method, repeated ones included."""

    sent: int = 0
    """Bytes of the bodies that were sent."""

    received: int = 0
    """Bytes of the objects that were read."""

    @property
    def n_requests(self) -> int:
        """Number of all requests."""
        return sum(self.requests.values())

    def __add__(self, other: Traffic) -> Traffic:
        requests = Counter(self.requests) + Counter(other.requests)
        return Traffic(dict(requests), self.sent + other.sent, self.received + other.received)

    def __sub__(self, other: Traffic) -> Traffic:
        requests = Counter(self.requests) - Counter(other.requests)
        return Traffic(dict(requests), self.sent - other.sent, self.received - other.received)


NO_TRAFFIC = Traffic()
"""No request and no byte."""


class TrafficCounter:
    """A sum of traffic that several threads add to."""

    def __init__(self, traffic: Traffic = NO_TRAFFIC):
        self.traffic = traffic
        self._lock = threading.Lock()

    def add(self, traffic: Traffic) -> None:
        """Add traffic to the sum."""
        with self._lock:
            self.traffic += traffic
