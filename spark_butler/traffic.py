"""What goes to and from object stores."""

from __future__ import annotations

__all__ = ["NO_TRAFFIC", "Traffic", "TrafficCounter"]

import dataclasses
import threading
from collections import Counter
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """What went to and from object stores."""

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
        requests = Counter(self.requests)
        requests.update(other.requests)
        return Traffic(dict(requests), self.sent + other.sent, self.received + other.received)

    def since(self, before: Traffic) -> Traffic:
        """Subtract what had come before.

        Parameters
        ----------
        before
            An earlier value of the same counters.
        """
        requests = Counter(self.requests)
        requests.subtract(before.requests)
        return Traffic(dict(+requests), self.sent - before.sent, self.received - before.received)


NO_TRAFFIC = Traffic()
"""Nothing."""


class TrafficCounter:
    """Counts what goes to and from object stores, also where several threads do it."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._sent = 0
        self._received = 0
        self._lock = threading.Lock()

    @property
    def traffic(self) -> Traffic:
        """What was counted so far."""
        with self._lock:
            return Traffic(dict(self._requests), self._sent, self._received)

    def count_request(self, method: str, sent: int) -> None:
        """Count a request.

        Parameters
        ----------
        method
            Its HTTP method.
        sent
            Bytes of its body.
        """
        with self._lock:
            self._requests[method] += 1
            self._sent += sent

    def count_received(self, nbytes: int) -> None:
        """Count what was read.

        Parameters
        ----------
        nbytes
            Bytes of the object.
        """
        with self._lock:
            self._received += nbytes

    def add(self, traffic: Traffic) -> None:
        """Add what was counted elsewhere.

        Parameters
        ----------
        traffic
            What was counted.
        """
        with self._lock:
            self._requests.update(traffic.requests)
            self._sent += traffic.sent
            self._received += traffic.received

    def renew_lock(self) -> None:
        """Make a lock that nobody holds, in a process that was forked."""
        self._lock = threading.Lock()
