"""Child processes that run groups, so that a task that crashes ends only its child.

Runs in workers.  A worker forks each child, so the child has all modules and the
context from the start.  A child opens its own connections to the object store.
"""

from __future__ import annotations

__all__ = ["ChildRunner"]

import contextlib
import dataclasses
import faulthandler
import logging
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator
from typing import NoReturn, Self, cast

from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport

from ..errors import EngineError
from ..model.outcomes import FailureKind, QuantumOutcome, QuantumStarted, exit_text
from ..model.work import QuantumWork
from ..signals_and_locks import dying_with_parent
from .child_io import END, Channel, LogTail
from .group import AttemptEvent, Trial, find_outputs, run_group
from .memory import count_out_of_memory_kills, limit_allocations, resident_memory
from .state import Imported, WorkerState, imported_since
from .temporary_directory import TemporaryFolder

_GRACE_SECONDS = 1.0
_WATCH_SECONDS = 1.0
_MEMORY_WATCH_SECONDS = 0.05

# Signals that a process raises by its own fault; all other signals come from another process.
_OWN_SIGNALS = frozenset(
    getattr(signal, f"SIG{name}") for name in ("ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP")
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Crash:
    """A failure of the engine's own code in a child."""

    text: str


class ChildRunner:
    """Runs quanta in a child of this process, within their limits; a `spark_butler.worker.group.Runner`."""

    def run(self, trial: Trial) -> Generator[AttemptEvent]:
        with LogTail() as log_tail, TemporaryFolder() as folder:

            def target(channel: Channel) -> None:
                modules = frozenset(sys.modules)
                folder.use()
                log_tail.attach()
                for event in run_group(trial, trial.received):
                    if isinstance(event, list):
                        channel.send_record(event)
                        continue
                    if isinstance(event, QuantumStarted):
                        log_tail.clear()
                        if trial.memory:
                            limit_allocations(trial.memory.get(event.position))
                    channel.send(event)
                channel.send(imported_since(modules))

            yield from self._watch(trial, target, log_tail)

    def _watch(
        self, trial: Trial, target: Callable[[Channel], None], log_tail: LogTail
    ) -> Generator[AttemptEvent]:
        """Start a child, yield its events, and kill it when it exceeds a limit."""
        current: QuantumWork | None = None
        limit: int | None = None
        imported = Imported(())
        n_kills = count_out_of_memory_kills()
        started = time.monotonic()
        with _Child(target) as child:
            while True:
                match child.receive():
                    case QuantumStarted() as event:
                        current = trial.payload.quanta[event.position]
                        limit = trial.memory.get(event.position)
                        started = time.monotonic()
                        child.limit(trial.context.limits_of(current.task_label).timeout, limit)
                    case QuantumOutcome() as outcome:
                        current = None
                        child.limit(None, None)
                        yield dataclasses.replace(outcome, memory_limit=limit)
                    case Imported() as imported:
                        pass
                    case None:
                        break
                    case record:
                        yield cast("AttemptEvent", record)
            exit_code = child.stop() if child.alive else child.wait()
        self._preload(trial.state, imported)
        if current is None:
            if exit_code > 0:
                raise EngineError(f"A child process failed between two quanta: {exit_text(exit_code)}.")
            return
        kind, reason = child.find_reason(n_kills)
        dead, left = current, None
        if trial.context.quantum_executor is None:
            left = self.call(lambda: find_outputs(trial, dead))
        yield QuantumOutcome(
            current.quantum_id,
            QuantumAttemptStatus.ABORTED,
            _crash_report(current, exit_code, kind),
            kind=kind,
            reason=reason,
            log_tail=log_tail.read(),
            **(left or {}),
            started=time.time() - (time.monotonic() - started),
            wall_seconds=time.monotonic() - started,
            peak_memory=child.peak_memory,
            memory_limit=limit,
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )

    def _preload(self, state: WorkerState, imported: Imported) -> None:
        """Import the modules that a child had to import, so that later children inherit them."""
        began = time.time()
        if not state.preloader.find_missing(imported.names):
            return
        if imported.has_threads:
            state.preloader.preload(imported.names, self.call)
        else:
            state.preloader.import_modules(imported.names)
        state.clock.record_imports(began)

    def call[T](self, function: Callable[[], T]) -> T | None:
        """Call a function in a child, so that this process opens no client of the object store."""
        with _Child(lambda channel: channel.send(function())) as child:
            answer = child.receive()
            child.wait()
        return cast("T | None", answer)


class _Child:
    """A forked process that runs a function, which sends objects to the parent through a channel."""

    def __init__(self, target: Callable[[Channel], None]):
        self._receiver, sender = Channel.make_pair()
        self._exit_code: int | None = None
        self._timeout: float | None = None
        self._deadline = math.inf
        self._memory: int | None = None
        self._broken: FailureKind | None = None
        self.alive = True
        self.peak_memory = 0
        """Peak resident memory in bytes; known when the child has ended."""
        sys.stdout.flush()
        sys.stderr.flush()
        tie_to_parent = dying_with_parent()
        self._id = os.fork()
        if self._id == 0:
            self._receiver.close()
            _child_main(target, sender, tie_to_parent)
        sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._receiver.close()
        if self._exit_code is None:
            self.stop(grace=0.0)

    def limit(self, timeout: float | None, memory: int | None) -> None:
        """Set the limits on time, in seconds from now, and on resident memory, in bytes."""
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._memory = memory

    def receive(self) -> object:
        """Wait for the next object; `None` when the child has ended or exceeded a limit."""
        watch = _WATCH_SECONDS if self._memory is None else _MEMORY_WATCH_SECONDS
        event: object = None
        while event is None:
            left = max(0.0, self._deadline - time.monotonic())
            event = self._receiver.receive(min(left, watch))
            if event is not None:
                break
            if self._has_ended():
                # Another process can hold the pipe open, so the pipe may not show that the child has ended.
                last = self._receiver.receive(0.0)
                event = END if last is None else last
            elif self._memory is not None and resident_memory(self._id) > self._memory:
                self._broken = FailureKind.MEMORY
                # SIGKILL, because a child that handles SIGTERM would go on growing.
                self._kill(signal.SIGKILL)
                return None
            elif time.monotonic() >= self._deadline:
                self._broken = FailureKind.TIMEOUT
                return None
        if event is END:
            self.alive = False
            return None
        if isinstance(event, _Crash):
            raise EngineError(f"The engine failed in a worker:\n{event.text}")
        return event

    def find_reason(self, n_kills: int) -> tuple[FailureKind, str]:
        """Return why the child ended during a quantum; ``n_kills`` out-of-memory kills came before it."""
        exit_code = self.wait()
        used = f"peak memory {self.peak_memory / 2**20:.0f} MiB"
        if self._broken is FailureKind.TIMEOUT:
            return FailureKind.TIMEOUT, f"took longer than its limit of {self._timeout:g} s; {used}"
        if self._broken is FailureKind.MEMORY:
            assert self._memory is not None
            return FailureKind.MEMORY, f"used more than its limit of {self._memory / 2**20:.0f} MiB; {used}"
        if exit_code >= 0:
            return FailureKind.EXIT, f"the task exited, {exit_text(exit_code)}; {used}"
        if -exit_code in _OWN_SIGNALS:
            return FailureKind.SIGNAL, f"{exit_text(exit_code)}; {used}"
        if exit_code == -signal.SIGKILL and count_out_of_memory_kills() > n_kills:
            return FailureKind.MEMORY, f"killed by the system for lack of memory; {used}"
        return FailureKind.LOST, f"{exit_text(exit_code)}, from outside; {used}"

    def _has_ended(self) -> bool:
        """Return whether the process has ended, without waiting for it."""
        if self._exit_code is None:
            self._reap(os.WNOHANG)
        return self._exit_code is not None

    def wait(self) -> int:
        """Wait for the end and return the exit code, negative for a signal."""
        if self._exit_code is None:
            self._reap(0)
        assert self._exit_code is not None
        return self._exit_code

    def _reap(self, flags: int) -> None:
        ended, status, usage = os.wait4(self._id, flags)
        if ended:
            self._exit_code = os.waitstatus_to_exitcode(status)
            # macOS counts bytes, all others kilobytes.
            self.peak_memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def stop(self, grace: float = _GRACE_SECONDS) -> int:
        """Ask the child to end, kill it after a while, and return the exit code."""
        self._kill(signal.SIGTERM if grace else signal.SIGKILL)
        deadline = time.monotonic() + grace
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._kill(signal.SIGKILL)
        return self.wait()

    def _kill(self, number: signal.Signals) -> None:
        # The ID of a process that has ended may belong to another process by now.
        if not self._has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._id, number)


def _child_main(
    target: Callable[[Channel], None], sender: Channel, tie_to_parent: Callable[[], None] | None
) -> NoReturn:
    """Run the target, then exit without calling the parent's exit handlers."""
    status = 1
    try:
        if tie_to_parent is not None:
            tie_to_parent()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        target(sender)
        status = 0
    except BaseException:  # noqa: BLE001  (the parent raises it)
        with contextlib.suppress(OSError):
            sender.send(_Crash(traceback.format_exc()))
    finally:
        # This process must never go on as a second worker.
        try:
            faulthandler.disable()
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _crash_report(work: QuantumWork, exit_code: int, kind: FailureKind) -> QuantumReport:
    """Build pipe_base's report of a quantum whose process has ended."""
    assert work.quantum.dataId is not None
    report = QuantumReport.from_exit_code(
        exit_code, work.quantum.dataId, work.task_label, quantumId=work.quantum_id
    )
    # A task that ends its process has not finished its quantum, even with exit status 0.
    report.status = ExecutionStatus.TIMEOUT if kind is FailureKind.TIMEOUT else ExecutionStatus.FAILURE
    return report
