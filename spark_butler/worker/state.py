"""What a worker keeps from group to group.

The worker entry of Spark makes one for its process, before it is forked from the
daemon, and the serial backend makes its own.
"""

from __future__ import annotations

__all__ = ["WorkerState"]

import dataclasses

from ..datastore.quantum_butler import QuantumButlers
from ..datastore.s3_clients import S3Clients
from .clock import WorkerClock
from .preload import Preloader


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker keeps from group to group; the processes that it forks inherit it."""

    clients: S3Clients = dataclasses.field(default_factory=S3Clients)
    """Clients of object stores, with the files that they keep in memory."""

    butlers: QuantumButlers = dataclasses.field(default_factory=QuantumButlers)
    """The datastore of the last context, to be cloned."""

    clock: WorkerClock = dataclasses.field(default_factory=WorkerClock)
    """Measures the time between quanta."""

    preloader: Preloader = dataclasses.field(default_factory=Preloader)
    """Imports modules for children."""
