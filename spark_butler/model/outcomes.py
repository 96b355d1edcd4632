"""Outcomes of quanta: outputs, usage and kinds of failure.  Workers build them; the driver collects them."""

from __future__ import annotations

__all__ = [
    "NO_TRAFFIC",
    "FailureKind",
    "ImportTime",
    "QuantumOutcome",
    "QuantumStarted",
    "RunResult",
    "Traffic",
    "TrafficCounter",
    "classify",
    "exit_text",
    "job_text",
]

import dataclasses
import enum
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping

from lsst.daf.butler import FileIntegrityError
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import (
    InvalidQuantumError,
    QuantumAttemptStatus,
    QuantumSuccessCaveats,
    RepeatableQuantumError,
)
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport


class FailureKind(enum.StrEnum):
    """Why an attempt at a quantum failed."""

    TASK = "task"
    """The task raised an exception; a second attempt would raise it again."""

    REPEATABLE = "repeatable"
    """The task raised `RepeatableQuantumError`: it would fail again."""

    INVALID = "invalid"
    """The task raised `InvalidQuantumError`: the run can't succeed with its configuration or inputs."""

    IO = "i/o"
    """The object store, the network or a disk failed."""

    MEMORY = "memory"
    """The process ran out of memory or exceeded its limit."""

    TIMEOUT = "timeout"
    """The attempt exceeded its time limit."""

    SIGNAL = "signal"
    """The process caused the signal that ended it, such as a segmentation fault."""

    EXIT = "exit"
    """The task ended the process, by `sys.exit` for example."""

    LOST = "lost"
    """Another process killed this one, or the machine was lost."""

    UPSTREAM = "upstream"
    """A temporary among the inputs was lost and could not be made again."""

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may succeed; only these kinds are retried."""
        return self in (FailureKind.IO, FailureKind.MEMORY, FailureKind.LOST)


# Errors about a path that a second attempt would raise again.
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_IO_PACKAGES = frozenset({"aiobotocore", "aiohttp", "boto3", "botocore", "fsspec", "s3fs", "urllib3"})
_FINAL_CLIENT_ERRORS = frozenset({"404", "NoSuchKey", "NoSuchBucket", "InvalidBucketName", "NotImplemented"})


def classify(exc: BaseException) -> FailureKind:
    """Return the kind of failure that an exception means."""
    if isinstance(exc, InvalidQuantumError):
        return FailureKind.INVALID
    if isinstance(exc, RepeatableQuantumError):
        return FailureKind.REPEATABLE
    if isinstance(exc, SystemExit):
        return FailureKind.EXIT
    if isinstance(exc, _FINAL):
        return FailureKind.TASK
    for each in _chain(exc):
        if isinstance(each, MemoryError):
            return FailureKind.MEMORY
        if _is_io(each):
            return FailureKind.IO
    return FailureKind.TASK


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its chain of causes."""
    seen: set[int] = set()
    each: BaseException | None = exc
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _is_io(exc: BaseException) -> bool:
    """Return whether storage or network caused an exception."""
    if isinstance(exc, _FINAL):
        return False
    if isinstance(exc, OSError | FileIntegrityError | EOFError):
        return True
    # By name, since importing them takes longer than most quanta.
    if type(exc).__module__.partition(".")[0] not in _IO_PACKAGES:
        return False
    response = getattr(exc, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    return code not in _FINAL_CLIENT_ERRORS


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


@dataclasses.dataclass(frozen=True, slots=True)
class QuantumStarted:
    """The start of a quantum in a worker."""

    position: int
    """Position of the quantum in its group."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImportTime:
    """A time that a process spent on imports."""

    process: str
    """Host name and process ID; workers that inherit the imports report the same."""

    began: float
    """When it began, in seconds since the epoch."""

    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class QuantumOutcome:
    """The result of one attempt at one quantum, as it travels to the driver."""

    quantum_id: uuid.UUID
    """ID of the quantum in the predicted quantum graph."""

    status: QuantumAttemptStatus
    """Status of the attempt at its end."""

    report: QuantumReport
    """Pipe_base's own report of the attempt: label, data ID, exit code and exception."""

    caveats: QuantumSuccessCaveats = QuantumSuccessCaveats.NO_CAVEATS
    """Qualifications of a success."""

    outputs: tuple[uuid.UUID, ...] = ()
    """IDs of the datasets that the attempt left in the datastore, logs and metadata included."""

    records: dict[str, DatastoreRecordData] = dataclasses.field(default_factory=dict)
    """Datastore records of ``outputs``, by name of the datastore."""

    removed: tuple[uuid.UUID, ...] = ()
    """IDs of datasets of an earlier attempt that are not in the datastore any more."""

    recovered: bool = False
    """Whether the attempt was found complete in the datastore after its worker was lost."""

    again: bool = False
    """Whether an abandoned attempt may still be writing the same files."""

    skipped_existing: bool = False
    """Whether nothing ran because an earlier attempt had succeeded."""

    kind: FailureKind | None = None
    """Kind of the failure; `None` after a success."""

    reason: str = ""
    """Reason of the failure: exception, signal or limit."""

    traceback: str = ""
    """Python traceback of a failure, if there was one."""

    log_tail: str = ""
    """Last log lines of a process that could not write its log before it ended."""

    attempts: tuple[QuantumOutcome, ...] = ()
    """The failed attempts before this one, without their outputs."""

    memory_limit: int | None = None
    """Memory limit of the attempt in bytes; `None` without a limit."""

    scan: bytes | None = None
    """The packed `spark_butler.provenance.scan.QuantumScan` of the attempt, if the run records provenance."""

    started: float = 0.0
    """When the attempt began by the worker's clock, in seconds since the epoch; 0 when unknown."""

    wall_seconds: float = 0.0
    """Time from start to end of the attempt, in seconds."""

    read_seconds: float | None = None
    """Time that the task spent in `Butler.get`, in seconds, as pipe_base measures it; `None` when unknown."""

    write_seconds: float | None = None
    """Time that the task spent in `Butler.put`, in seconds, as pipe_base measures it; `None` when unknown."""

    pack_seconds: float = 0.0
    """Part of the wall time that serialized temporaries for other groups, in seconds."""

    shuffle_seconds: float = 0.0
    """Time before, during which its slot received or sent temporaries and ran no quantum, in seconds."""

    imports: tuple[ImportTime, ...] = ()
    """Import times of its worker and of the worker's parents that no earlier outcome has reported."""

    cpu_seconds: float = 0.0
    """Processor time of the attempt, in seconds."""

    peak_memory: int = 0
    """Peak resident memory of the process that ran the attempt, in bytes; 0 when unknown."""

    worker: str = ""
    """Host name and process ID of the worker."""

    traffic: Traffic = NO_TRAFFIC
    """Traffic of the attempt with object stores."""

    @property
    def label(self) -> str:
        """Label of the task."""
        return self.report.taskLabel or ""

    @property
    def succeeded(self) -> bool:
        """Whether dependents of the quantum may run."""
        return self.status is QuantumAttemptStatus.SUCCESSFUL

    @property
    def timed_out(self) -> bool:
        """Whether the attempt was ended at its time limit."""
        return self.report.status is ExecutionStatus.TIMEOUT

    def as_attempt(self) -> QuantumOutcome:
        """Return the summary of an attempt that is followed by another."""
        return dataclasses.replace(
            self, outputs=(), records={}, removed=(), traceback="", log_tail="", imports=()
        )

    def with_rerun(self, again: QuantumOutcome) -> QuantumOutcome:
        """Add the outputs of a rerun, which wrote a lost temporary again."""
        records = {name: DatastoreRecordData(dict(data.records)) for name, data in self.records.items()}
        for name, data in again.records.items():
            records.setdefault(name, DatastoreRecordData()).records.update(data.records)
        outputs = (set(self.outputs) - set(again.removed)) | set(again.outputs)
        removed = (set(self.removed) | set(again.removed)) - outputs
        return dataclasses.replace(
            self, outputs=tuple(outputs), removed=tuple(removed), records=records, scan=again.scan
        )

    def without_scans(self) -> QuantumOutcome:
        """Return a copy without the scans, which only a provenance graph needs."""
        attempts = tuple(dataclasses.replace(attempt, scan=None) for attempt in self.attempts)
        return dataclasses.replace(self, attempts=attempts, scan=None)


def job_text(report: QuantumReport) -> str:
    """Return the name of a quantum in the messages of pipe_base's executors."""
    data_id = ", ".join(f"{key}: {value!r}" for key, value in report.dataId.items())
    return f"<{report.taskLabel} dataId={{{data_id}}}>"


def exit_text(exit_code: int) -> str:
    """Return the meaning of an exit code, negative for a signal, in the words of pipe_base's executors."""
    if exit_code >= 0:
        return f"exit code={exit_code}"
    text = f"killed by signal {-exit_code}"
    try:
        return f"{text} ({signal.strsignal(-exit_code)})"
    except ValueError:
        return text


@dataclasses.dataclass
class RunResult:
    """Outcomes of a run."""

    outcomes: dict[uuid.UUID, QuantumOutcome] = dataclasses.field(default_factory=dict)
    """Outcome of each quantum that ran."""

    blocked: list[uuid.UUID] = dataclasses.field(default_factory=list)
    """Quanta that did not run because a quantum that they depend on failed."""

    stopped_by: QuantumOutcome | None = None
    """The failure that stopped the run, if one did."""

    stop_reason: str = ""
    """The rule that stopped the run."""

    n_ingested: int = 0
    """Number of datasets that were registered."""

    @property
    def failed(self) -> list[QuantumOutcome]:
        """Outcomes of the quanta that failed."""
        return [outcome for outcome in self.outcomes.values() if not outcome.succeeded]
