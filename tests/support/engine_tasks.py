"""Tasks that misbehave in ways that pipe_base's mock tasks can't.

Workers import this module, so it must not import pytest.
"""

from __future__ import annotations

__all__ = [
    "BadConstructorTask",
    "CallConfig",
    "CrashAfterPutTask",
    "ExitTask",
    "FailOnceTask",
    "HarakiriTask",
    "ImportTask",
    "LazyTask",
    "NoLogTask",
    "NoMultiprocessingTask",
    "OneOutputTask",
    "OverlapTask",
    "SpyTask",
    "TroubleConfig",
    "TroubleTask",
    "WholeTask",
    "watch_opens",
]

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lsst.daf.butler import DatasetRef
from lsst.pex.config import DictField, Field
from lsst.pipe.base import (
    InputQuantizedConnection,
    OutputQuantizedConnection,
    PipelineTask,
    QuantumContext,
    RepeatableQuantumError,
    Struct,
)
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask, DynamicTestPipelineTaskConfig
from lsst.pipe.base.tests.mocks._pipeline_task import DynamicTestPipelineTaskConnections


class CallConfig(DynamicTestPipelineTaskConfig, pipelineConnections=DynamicTestPipelineTaskConnections):
    """Configuration of the tasks of this module."""

    way = Field[str]("What to do.", dtype=str, default="")
    number = Field[int]("Exit status, or number of attempts.", dtype=int, default=0)
    folder = Field[str]("Directory for notes.", dtype=str, default="")


class TroubleConfig(CallConfig):
    """Configuration of `TroubleTask`."""

    troubles = DictField[str, str]("Trouble by detector.", keytype=str, itemtype=str, default={})


class _CallTask(DynamicTestPipelineTask):
    """Does something of its own where the data ID fits the fail condition, before the mock's usual work."""

    ConfigClass = CallConfig

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        match, self.data_id_match = self.data_id_match, None
        if match is None or match.match(butlerQC.quantum.dataId):
            self.act(butlerQC, inputRefs, outputRefs)
        try:
            super().runQuantum(butlerQC, inputRefs, outputRefs)
        finally:
            self.data_id_match = match

    def act(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        raise NotImplementedError


class ExitTask(_CallTask):
    """Leaves: ``way`` names the way and ``number`` the status."""

    def act(self, *args: Any) -> None:
        if self.config.way == "os._exit":
            os._exit(self.config.number)
        if self.config.way == "abandon":
            # A grandchild that lives on holds all that the dead process had open.
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(self.config.number)


class HarakiriTask(_CallTask):
    """Kills its own process; where there is a ``folder``, only the first of those that share it does."""

    def act(self, *args: Any) -> None:
        if not self.config.folder or _count(Path(self.config.folder) / "deaths") == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class CrashAfterPutTask(_CallTask):
    """Writes its first output and then kills its own process."""

    def act(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        _put_one(self, butlerQC, outputRefs)
        os.kill(os.getpid(), signal.SIGKILL)


class NoLogTask(_CallTask):
    """Loses the object store when all that is left to write is its log."""

    def act(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        butler: Any = butlerQC._QuantumContext__butler
        put = butler.put

        def put_no_log(obj: Any, ref: DatasetRef, **kwargs: Any) -> DatasetRef:
            if ref.datasetType.name.endswith("_log") and ref.dataId == butlerQC.quantum.dataId:
                raise ValueError("no log today")
            return put(obj, ref, **kwargs)

        butler.put = put_no_log


class OneOutputTask(_CallTask):
    """Writes its first output and then raises."""

    def act(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        _put_one(self, butlerQC, outputRefs)
        raise ValueError("after the first output")


class FailOnceTask(_CallTask):
    """Raises from the attempt on whose number is ``number``, or up to it if that is negative.

    ``folder`` names the directory where it counts its attempts.
    """

    def act(self, butlerQC: QuantumContext, *args: Any) -> None:
        data_id = "-".join(str(value) for value in butlerQC.quantum.dataId.required_values)
        count = _count(Path(self.config.folder) / f"{self.getName()}-{data_id}")
        limit = self.config.number
        if (limit > 0 and count >= limit) or (limit < 0 and count <= -limit):
            raise ValueError(f"attempt {count}")
        self.metadata["padding"] = "x" * count


class TroubleTask(_CallTask):
    """Gets into the trouble that ``troubles`` names for its detector."""

    ConfigClass = TroubleConfig

    def act(self, butlerQC: QuantumContext, *args: Any) -> None:
        detector = butlerQC.quantum.dataId["detector"]
        self.log.warning("Here comes detector %s.", detector)
        match self.config.troubles.get(str(detector), ""):
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "memory":
                self._grow()
            case "gulp":
                bytearray(1 << 42)
            case "hang":
                time.sleep(600)
            case "raise":
                raise ValueError(f"no good: {detector}")
            case "store":
                self._fail_at_first(detector, ConnectionResetError("the store is away"))
            case "store for ever":
                raise ConnectionResetError("the store is away")
            case "repeatable":
                raise RepeatableQuantumError("always so")
            case "lost":
                if _count(Path(self.config.folder) / f"count-{detector}") == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

    def _grow(self) -> None:
        """Use ``number`` MiB, page by page."""
        kept = []
        for _ in range(self.config.number):
            kept.append(bytes([1]) * 2**20)
            time.sleep(0.001)

    def _fail_at_first(self, detector: object, error: Exception) -> None:
        if _count(Path(self.config.folder) / f"count-{detector}") == 1:
            raise error


class BadConstructorTask(_CallTask):
    """Can't be made as soon as ``folder`` is there."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if Path(self.config.folder).exists():
            raise ArithmeticError("this task can't be made")


class ImportTask(_CallTask):
    """Imports a module that no other code imports, and notes in ``folder`` whether it was there already."""

    def act(self, *args: Any) -> None:
        was_there = "wave" in sys.modules
        import wave  # noqa: F401

        path = Path(self.config.folder) / f"{os.getpid()}-{time.time_ns()}"
        path.write_text(f"{os.getppid()} {was_there}")


class OverlapTask(_CallTask):
    """Notes in ``folder`` when it began and ended; ``number`` makes it last so many seconds."""

    def act(self, butlerQC: QuantumContext, *args: Any) -> None:
        start = time.time()
        time.sleep(self.config.number or 0.3)
        name = "-".join(str(value) for value in butlerQC.quantum.dataId.required_values)
        path = Path(self.config.folder) / f"{self.getName()}-{name}.json"
        path.write_text(json.dumps([start, time.time(), os.getpid(), os.getppid()]))


class NoMultiprocessingTask(DynamicTestPipelineTask):
    """Must run in the process of its driver."""

    canMultiprocess = False


class SpyTask(_CallTask):
    """Writes to ``folder`` all that its process could know of a registry."""

    def act(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        butler = butlerQC._QuantumContext__butler
        files = []
        for number in os.listdir("/proc/self/fd"):
            try:
                files.append(os.readlink(f"/proc/self/fd/{number}"))
            except FileNotFoundError:
                continue
        note = {
            "pid": os.getpid(),
            "butlers": [f"{type(each).__name__}" for each in (butler, getattr(butler, "wrapped", butler))],
            "has_registry": hasattr(butler, "registry") or hasattr(butler, "_registry"),
            "files": files,
            "opened": list(getattr(sys, "_spark_butler_opened", ())),
            "watched": hasattr(sys, "_spark_butler_opened"),
        }
        path = Path(self.config.folder) / f"{os.getpid()}-{time.time_ns()}.json"
        path.write_text(json.dumps(note))


class LazyTask(DynamicTestPipelineTask):
    """Reads nothing where the data ID fits the fail condition."""

    ConfigClass = CallConfig

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        match, self.data_id_match = self.data_id_match, None
        if match is not None and match.match(butlerQC.quantum.dataId):
            _put_one(self, butlerQC, outputRefs)
        else:
            super().runQuantum(butlerQC, inputRefs, outputRefs)
        self.data_id_match = match


class WholeTask(DynamicTestPipelineTask):
    """Is given all its inputs by pipe_base, and puts out the one that is called ``raw``."""

    ConfigClass = CallConfig
    runQuantum = PipelineTask.runQuantum

    def run(self, **inputs: Any) -> Struct:
        return Struct(out=inputs["raw"])


def watch_opens() -> None:
    """Note in this process and those forked from it every file and every SQLite database that is opened."""
    opened: list[str] = []
    sys._spark_butler_opened = opened

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "sqlite3.connect"):
            opened.append(f"{event} {args[0]}")

    sys.addaudithook(hook)


def _put_one(
    task: DynamicTestPipelineTask, butlerQC: QuantumContext, outputRefs: OutputQuantizedConnection
) -> None:
    """Put a mock dataset for the output connection that comes first in the alphabet."""
    from lsst.pipe.base.tests.mocks import MockDataset

    _, ref = min(outputRefs, key=lambda item: item[0])
    dataset = MockDataset(
        dataset_id=ref.id,
        dataset_type=ref.datasetType.to_simple(),
        data_id=dict(ref.dataId.mapping),
        run=ref.run,
        output_connection_name="first",
    )
    butlerQC.put(dataset, ref)


def _count(path: Path) -> int:
    """Count up in a file."""
    with path.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        count = int(stream.read() or 0) + 1
        stream.truncate(0)
        stream.write(str(count))
    return count


class LeakTask(_CallTask):
    """Logs the secret key of its environment, and raises an error with it."""

    def act(self, *args: Any) -> None:
        text = f"key {os.environ['AWS_SECRET_ACCESS_KEY']} of https://me:{os.environ['PLANTED']}@host/x"
        self.log.warning(text)
        raise RuntimeError(text)
