"""Measured parts of a slot's time between quanta."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import pytest
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import QuantumReport

from spark_butler.model.outcomes import QuantumOutcome
from spark_butler.worker import state as slot_clock
from spark_butler.worker.state import WorkerClock


class _Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """The clock that a slot looks at."""
    clock = _Clock()
    monkeypatch.setattr(slot_clock, "time", clock)
    return clock


def _outcome(started: float) -> QuantumOutcome:
    quantum_id = uuid.uuid4()
    report = QuantumReport(quantumId=quantum_id, dataId={}, taskLabel="a")
    return QuantumOutcome(quantum_id, QuantumAttemptStatus.SUCCESSFUL, report, started=started)


def test_no_time_is_counted_twice(clock: _Clock) -> None:
    slot = WorkerClock()
    clock.now = 103.0
    slot.record_shuffle(101.0)
    # The child packed this while the one before was still being sent.
    clock.now = 104.0
    slot.record_shuffle(102.0)
    assert slot.stamp(_outcome(90.0)).shuffle_seconds == pytest.approx(3.0)
    assert slot.stamp(_outcome(105.0)).shuffle_seconds == 0.0


def test_time_inside_a_quantum_is_not_shuffle_time(clock: _Clock) -> None:
    slot = WorkerClock()
    clock.now = 104.0
    slot.record_shuffle(101.0)
    assert slot.stamp(_outcome(99.0)).shuffle_seconds == pytest.approx(3.0)
    # The child had begun this one at 102, two seconds before its parent was done with the records.
    assert slot.stamp(_outcome(102.0)).shuffle_seconds == 0.0
    clock.now = 115.0
    slot.record_shuffle(110.0)
    assert slot.stamp(_outcome(104.5)).shuffle_seconds == pytest.approx(5.0 - 2.0)


def test_outcome_without_times_is_unchanged() -> None:
    outcome = _outcome(1.0)
    assert WorkerClock().stamp(outcome) is outcome


def test_outer_imports_are_reported_once() -> None:
    slot, began = WorkerClock(), time.time()
    slot.record_imports(began - 0.5)
    slot.record_imports(began - 1.0)
    (reported,) = slot.stamp(_outcome(1.0)).imports
    assert (reported.process.rpartition(":")[2], reported.began) == (str(os.getpid()), began - 1.0)
    assert reported.seconds == pytest.approx(1.0, abs=0.2)
    assert slot.pop_imports() == ()
    slot.record_imports(time.time())
    assert slot.pop_imports() == ()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_workers_report_imports_of_their_parent() -> None:
    slot = WorkerClock()
    slot.record_imports(time.time() - 2.0)
    reader, writer = os.pipe()
    # The child does nothing that could wait for a thread.
    if (child := os.fork()) == 0:
        time.sleep(0.01)
        slot.record_imports(slot.start_of_imports() - 0.01)
        os.write(writer, ",".join(each.process for each in slot.pop_imports()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    reported = os.read(reader, 1000).decode().split(",")
    os.close(reader)
    os.close(writer)
    assert [each.rpartition(":")[2] for each in reported] == [str(os.getpid()), str(child)]


def test_worker_of_another_daemon_reports_its_cpu_time() -> None:
    slot = WorkerClock()
    assert time.time() - slot.start_of_imports() == pytest.approx(time.process_time(), abs=0.1)
    slot.record_imports(slot.start_of_imports())
    assert time.time() - slot.start_of_imports() == pytest.approx(0.0, abs=0.1)


def test_new_run_keeps_imports_but_not_shuffle_time(clock: _Clock) -> None:
    slot = WorkerClock()
    clock.now = 104.0
    slot.record_shuffle(101.0)
    slot.record_imports(103.0)
    slot.begin_run()
    outcome = slot.stamp(_outcome(99.0))
    assert outcome.shuffle_seconds == 0.0
    assert len(outcome.imports) == 1


def test_cpu_time_of_daemon_counts_from_its_start() -> None:
    code = (
        "import time; time.sleep(0.5); from spark_butler.spark import daemon; import pyspark.daemon; "
        "from spark_butler.spark.worker_entry import worker_state; pop = worker_state().clock.pop_imports; "
        "pyspark.daemon.manager = lambda: print(*[each.seconds for each in pop()]); "
        "daemon.serve()"
    )
    began = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (seconds,) = map(float, shown.split())
    assert 1.0 < seconds < time.monotonic() - began + 0.1
