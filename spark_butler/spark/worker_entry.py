"""Entry points of Spark tasks, which run groups and send outcomes and records.  Runs in Python workers."""

from __future__ import annotations

__all__ = ["open_context", "run_first_level", "run_groups", "run_next_level", "worker_state"]

import dataclasses
import functools
import os
import pickle
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pyspark import Accumulator, Broadcast, SparkFiles, TaskContext

from ..model.outcomes import QuantumOutcome
from ..model.work import GroupWork, PackedTasks, WorkerContext
from ..temporaries.shuffle import ReceiveBuffer, partition_of, receive
from ..worker.child_process import ChildRunner
from ..worker.memory import MemoryLock
from ..worker.quantum_retry import run_attempts
from ..worker.state import WorkerState
from ..worker.temporary_directory import TemporaryFolder

_LONG = struct.Struct("!q")

# Built in the daemon, so that its workers inherit it.  A worker is one slot and has one thread.
_state = WorkerState()


def worker_state() -> WorkerState:
    """Return the state that this worker keeps from group to group."""
    return _state


@functools.lru_cache(maxsize=2)
def open_context(data: bytes) -> Any:
    """Unpickle a context and set the worker process up for it, once for each context.

    ``data`` is from `dump_context`, or from `dump_with_classes` of an object that has it as ``worker``.
    """
    clock = _state.clock
    clock.begin_run()
    began = clock.start_of_imports()
    _, context = pickle.loads(data)
    worker_context = context if isinstance(context, WorkerContext) else context.worker
    _state.prepare(worker_context)
    # Children inherit the tasks from here, unless their modules start threads.
    if (
        isinstance(tasks := worker_context.task_nodes, PackedTasks)
        and worker_context.isolation != "none"
        and _state.preloader.preload(tasks.modules, ChildRunner().call)
    ):
        tasks.open()
    TemporaryFolder.remove_abandoned()
    clock.record_imports(began)
    return context


def run_groups(
    broadcast: Broadcast[bytes],
    outcomes: Accumulator[list[QuantumOutcome]],
    works: Iterable[GroupWork],
) -> Iterator[None]:
    """Run groups that send no records to other groups."""
    yield from ()
    context: WorkerContext = open_context(broadcast.value)
    for work in works:
        for event in _run_here(context, work, None):
            if isinstance(event, QuantumOutcome):
                outcomes.add([_marked(event, work)])
                if context.fail_fast and not event.succeeded:
                    return


def run_first_level(
    broadcast: Broadcast[bytes],
    outcomes: Accumulator[list[QuantumOutcome]],
    works: Iterable[GroupWork],
) -> Iterator[bytes | bytearray]:
    """Run groups that receive no records; yield partitions (packed as 8 bytes) and records in turn."""
    context: WorkerContext = open_context(broadcast.value)
    for work in works:
        yield from _run_group(context, outcomes, work, None)


def run_next_level(
    broadcast: Broadcast[bytes],
    outcomes: Accumulator[list[QuantumOutcome]],
    records: Iterable[bytes],
) -> Iterator[bytes | bytearray]:
    """Run the group that receives the records, and forward the records of later levels.

    Yields partitions and records as `run_first_level` does.
    """
    context: WorkerContext = open_context(broadcast.value)
    began = time.time()
    for item in receive(records):
        if isinstance(item, bytes):
            yield _LONG.pack(partition_of(item))
            yield item
            _state.clock.record_shuffle(began)
        else:
            _state.clock.record_shuffle(began)
            yield from _run_group(context, outcomes, *item)


def _run_group(
    context: WorkerContext,
    outcomes: Accumulator[list[QuantumOutcome]],
    work: GroupWork,
    received: ReceiveBuffer | None,
) -> Iterator[bytes | bytearray]:
    """Run a group, and yield the next partition of each of its records before the record."""
    for event in _run_here(context, work, received):
        if isinstance(event, QuantumOutcome):
            outcomes.add([_marked(event, work)])
        else:
            yield _LONG.pack(partition_of(event))
            yield event


def _run_here(
    context: WorkerContext, work: GroupWork, received: ReceiveBuffer | None
) -> Iterator[QuantumOutcome | bytearray]:
    """Run a group in children of this worker, or in the worker itself without isolation."""
    return run_attempts(
        _state,
        context,
        work,
        received,
        runner=None if context.isolation == "none" else ChildRunner(),
        # Spark does not report that it runs a stage again for a lost shuffle, so a sender checks.
        again=_is_again() or (None if work.routes else False),
        memory_lock=MemoryLock(Path(SparkFiles.getRootDirectory())),
        slots=_slots_here(),
    )


def _slots_here() -> int:
    """Return how many groups run on this machine at the same time."""
    cores = os.environ.get("SPARK_EXECUTOR_CORES", "")
    return int(cores) if cores.isdecimal() else os.cpu_count() or 1


def _is_again() -> bool:
    """Return whether this Spark task has been tried before."""
    task = TaskContext.get()
    return task is not None and task.attemptNumber() > 0


def _marked(outcome: QuantumOutcome, work: GroupWork) -> QuantumOutcome:
    """Mark an outcome if an earlier attempt, which Spark has given up, may still be alive."""
    return dataclasses.replace(outcome, again=True) if work.again or _is_again() else outcome
