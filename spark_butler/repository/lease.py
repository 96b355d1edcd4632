"""Lease of a driver on its output run, which prevents two drivers from writing into one run.

Runs in the driver.

The lease is an empty collection in the registry, because any database lets only one
of several drivers register a collection.  The documentation string of the collection
names the driver, and has a counter that the driver increases while it is alive.  Each
transaction that ingests datasets checks the name.
"""

from __future__ import annotations

__all__ = ["RunLease"]

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Self

from lsst.daf.butler import Butler, CollectionType, MissingCollectionError

from ..errors import EngineError, RepositoryError
from ..text import best_effort, format_seconds
from .database_retry import retry_database

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 10.0
_STALE_SECONDS = 60.0
_SETTLE_SECONDS = 1.0
_RELEASE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class _Holder:
    """The driver that holds a lease, as the documentation of its collection describes it."""

    run: str
    token: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))
    host: str = dataclasses.field(default_factory=socket.gethostname)
    pid: int = dataclasses.field(default_factory=os.getpid)
    process: str = dataclasses.field(default_factory=lambda: _identify(os.getpid()))
    began: float = dataclasses.field(default_factory=time.time)
    beat: float = 0.0

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def describe(self) -> str:
        """Return the host, the process and the ages as text."""
        began = datetime.datetime.fromtimestamp(self.began, datetime.UTC)
        age = format_seconds(max(0.0, time.time() - self.beat))
        return f"process {self.pid} on {self.host}, since {began:%Y-%m-%d %H:%M:%S} UTC, last sign {age} ago"

    @property
    def has_ended(self) -> bool:
        """Whether the process is known to have ended; only a process on the same machine can know."""
        machine, _, start = self.process.rpartition(" ")
        mine, _, _ = _identify(os.getpid()).rpartition(" ")
        return bool(machine) and machine == mine and _identify(self.pid) != self.process and bool(start)


def _identify(pid: int) -> str:
    """Return the boot, PID namespace and start that identify a process; empty if it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {start}"
    except (OSError, IndexError):
        return ""


class RunLease:
    """Lease of this process on an output run, renewed until the context ends.

    Parameters
    ----------
    take_over
        Whether to take the lease of a driver that gives no sign of life.  Otherwise a
        `~spark_butler.errors.RepositoryError` is raised if another driver has the lease.
    """

    def __init__(self, butler: Butler, run: str, *, take_over: bool = False):
        self._name = f"spark-butler/lease/{hashlib.sha256(run.encode()).hexdigest()[:16]}"
        self._holder = _Holder(run, beat=time.time())
        self._over = threading.Event()
        self._lost: str | None = None
        self._butler = butler.clone()
        try:
            retry_database(f"Run {run!r} can't be reserved", lambda: self._acquire(take_over=take_over))
        except BaseException:
            self._butler.close()
            raise
        self._thread = threading.Thread(target=self._keep, name="spark-butler-lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()
        what = f"The lease on run {self._holder.run!r} stays"
        with best_effort(what, level=logging.DEBUG):
            retry_database(what, self._release, seconds=_RELEASE_SECONDS)
        self._butler.close()

    def _release(self) -> None:
        with self._butler.transaction():
            if self._read(self._butler) == self._holder:
                self._butler.collections.x_remove(self._name)

    def check(self, butler: Butler) -> None:
        """Check, inside a transaction that writes to the run, that this driver still has the lease."""
        if self._lost is None:
            holder = self._read(butler)
            if holder is not None and holder.token == self._holder.token:
                return
            self._lost = "no driver" if holder is None else holder.describe()
        raise EngineError(
            f"Run {self._holder.run!r} was taken over from this driver (now: {self._lost}), which stops and "
            "registers nothing more."
        )

    def _acquire(self, *, take_over: bool) -> None:
        """Register the collection, or take the lease of a driver that has ended."""
        register = self._butler.collections.register
        while not register(self._name, CollectionType.TAGGED, self._holder.dump()):
            other = self._read(self._butler)
            if other is None:
                # The other driver released it in between.
                continue
            if other == self._holder:
                # This driver registered it just before it lost the connection.
                return
            if not other.has_ended:
                self._refuse_living(other, take_over=take_over)
            logger.warning(
                "Taking over run %r from a driver that has ended: %s.", other.run, other.describe()
            )
            with self._butler.transaction():
                if self._read(self._butler) == other:
                    self._write()
            # Another driver may do the same at this moment; the last one to write has the lease.
            time.sleep(_SETTLE_SECONDS)
            if self._read(self._butler) == self._holder:
                return

    def _refuse_living(self, other: _Holder, *, take_over: bool) -> None:
        """Raise if the other driver gives a sign of life, or its lease must not be taken over."""
        text = f"Run {other.run!r} is being written by another driver: {other.describe()}."
        if time.time() - other.beat < _STALE_SECONDS:
            raise RepositoryError(
                f"{text} Wait for its end or stop it (`spark-butler cancel`), or write to another run."
            )
        if not take_over:
            raise RepositoryError(
                f"{text} If you know that it has ended, repeat the command with --take-over: the other "
                "driver will register nothing more."
            )
        # The clocks of two machines may differ: only a count that doesn't rise proves something.
        logger.warning("Waiting %s for a sign of the other driver.", format_seconds(2.5 * _BEAT_SECONDS))
        if self._over.wait(2.5 * _BEAT_SECONDS) or self._read(self._butler) != other:
            raise RepositoryError(f"{text} It is alive: --take-over has no effect.")

    def _read(self, butler: Butler) -> _Holder | None:
        """Return the driver that holds the lease; `None` if none does."""
        try:
            text = butler.registry.getCollectionDocumentation(self._name)
            return _Holder(**json.loads(text or ""))
        except MissingCollectionError:
            return None
        except (ValueError, TypeError):
            return _Holder("?", token="?", host="?", pid=0, process="", began=0.0)

    def _write(self) -> None:
        self._butler.registry.setCollectionDocumentation(self._name, self._holder.dump())

    def _keep(self) -> None:
        """Renew the lease until the end, or until it is lost."""
        while not self._over.wait(_BEAT_SECONDS):
            with best_effort("The lease can't be renewed now"), self._butler.transaction():
                with contextlib.suppress(EngineError):
                    self.check(self._butler)
                if self._lost is not None:
                    logger.error("Run %r was taken over by another driver.", self._holder.run)
                    return
                self._holder = dataclasses.replace(self._holder, beat=time.time())
                self._write()
