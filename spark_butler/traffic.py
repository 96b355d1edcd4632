"""What goes to and from object stores."""

from __future__ import annotations

__all__ = ["NO_TRAFFIC", "Traffic"]

import dataclasses
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
