"""Limits of a quantum: time, memory and retries.  The driver makes them; workers apply them."""

from __future__ import annotations

__all__ = ["Limits"]

import dataclasses
import random

from .outcomes import FailureKind

_FIRST_PAUSE = {FailureKind.IO: 2.0, FailureKind.LOST: 0.5}
_LONGEST_PAUSE = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the quanta of one task."""

    timeout: float | None = None
    """Seconds after which an attempt is killed."""

    memory: int | None = None
    """Resident memory in bytes beyond which an attempt is killed."""

    memory_multiplier: float = 2.0
    """Factor by which the memory limit grows after an attempt that exceeded it."""

    memory_cap: int | None = None
    """Largest memory limit in bytes after growth; `None` sets no cap."""

    retries: int = 2
    """Number of retries after transient failures."""

    def grow(self, memory: int | None) -> int | None:
        """Return the memory limit in bytes after one that was too small; the same one if it is at the cap."""
        if memory is None:
            return None
        grown = int(memory * self.memory_multiplier)
        return min(grown, max(memory, self.memory_cap)) if self.memory_cap is not None else grown

    def may_retry(self, kind: FailureKind, n_failed: int, memory: int | None) -> bool:
        """Return whether to retry after ``n_failed`` attempts; ``memory`` was the last limit in bytes."""
        if not kind.is_transient or n_failed > self.retries:
            return False
        return kind is not FailureKind.MEMORY or memory is None or self.grow(memory) != memory

    @staticmethod
    def pause(kind: FailureKind, n_failed: int) -> float:
        """Return the seconds to wait before the next attempt; they double each time, with jitter."""
        base = _FIRST_PAUSE.get(kind, 0.0) * 2.0 ** (n_failed - 1)
        return min(_LONGEST_PAUSE, base) * random.uniform(0.5, 1.5)
