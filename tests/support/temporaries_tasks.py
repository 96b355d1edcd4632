"""Pipeline tasks for the tests of temporaries; workers import this module too."""

from __future__ import annotations

__all__ = ["Call", "FunctionTask", "ProbeConfig", "ProbeMockTask", "digest"]

import dataclasses
import hashlib
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table
from lsst.images import Box, MaskedImage, VisitImage
from lsst.pex.config import DictField, Field, ListField
from lsst.pipe.base import (
    AlgorithmError,
    AnnotatedPartialOutputsError,
    PipelineTask,
    QuantumContext,
    Struct,
)
from lsst.pipe.base.connections import InputQuantizedConnection, OutputQuantizedConnection
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask, DynamicTestPipelineTaskConfig
from lsst.pipe.base.tests.mocks._pipeline_task import DynamicTestPipelineTaskConnections


class ProbeConnections(DynamicTestPipelineTaskConnections, dimensions=()):
    """Dynamic connections, of which some are loaded late."""

    def __init__(self, *, config: Any):
        super().__init__(config=config)
        for name in config.deferred:
            setattr(self, name, dataclasses.replace(getattr(self, name), deferLoad=True))


class ProbeConfig(DynamicTestPipelineTaskConfig, pipelineConnections=ProbeConnections):
    """Configuration of tasks that can be watched and held up."""

    deferred = ListField[str](doc="Names of inputs that are loaded late.", dtype=str, default=[])
    columns = ListField[str](doc="Read parameter of late inputs.", dtype=str, default=[])
    component = Field[str](doc="Component of late inputs to read.", dtype=str, default="")
    record = Field[str](doc="File that gets a line for each execution.", dtype=str, default="")
    hold = Field[str](doc="File that executions wait for the absence of.", dtype=str, default="")
    function = Field[str](doc="Name of the function in this module to run.", dtype=str, default="")
    options = DictField[str, float](doc="Numbers for the function.", keytype=str, itemtype=float, default={})

    def watch(self, context: QuantumContext, label: str) -> None:
        """Record an execution, and wait while someone asks for it."""
        if self.record:
            values = ",".join(map(str, context.quantum.dataId.required_values))
            line = f"{label}({values}) {os.getpid()} {os.getppid()}\n"
            descriptor = os.open(self.record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, line.encode())
            os.close(descriptor)
        deadline = time.monotonic() + 240
        while self.hold and Path(self.hold).exists() and time.monotonic() < deadline:
            time.sleep(0.05)


class _LateReader:
    """A quantum context that reads late inputs, twice, as the configuration says."""

    def __init__(self, context: QuantumContext, config: Any):
        self._context = context
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def get(self, ref: Any) -> Any:
        """Get an input."""
        found = self._context.get(ref)
        if not hasattr(found, "ref"):
            return found
        parameters = {"columns": list(self._config.columns)} if self._config.columns else None
        first = found.get(component=self._config.component or None, parameters=parameters)
        second = found.get(component=self._config.component or None, parameters=parameters)
        assert first == second
        return second


class ProbeMockTask(DynamicTestPipelineTask):
    """A mock task that can be watched, held up, and made to load late."""

    ConfigClass = ProbeConfig

    def runQuantum(
        self, butlerQC: Any, inputRefs: InputQuantizedConnection, outputRefs: OutputQuantizedConnection
    ) -> None:
        self.config.watch(butlerQC, self.getName())
        super().runQuantum(_LateReader(butlerQC, self.config), inputRefs, outputRefs)


class FunctionTask(PipelineTask):
    """A task on real datasets: a function of this module."""

    ConfigClass = ProbeConfig
    _DefaultName = "function"

    def __init__(self, initInputs: Any = None, **kwargs: Any):
        super().__init__(initInputs=initInputs, **kwargs)
        # What the task makes before it sees any data, and what it gets of others of this kind.
        self.schema_out = {"made by": self.getName()}
        self.schema_in = (initInputs or {}).get("schema_in")

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        self.config.watch(butlerQC, self.getName())
        made = FUNCTIONS[self.config.function](Call(self, butlerQC, inputRefs, outputRefs))
        if made is not None:
            butlerQC.put(Struct(**made), outputRefs)


@dataclasses.dataclass
class Call:
    """Arguments of a function of a `FunctionTask`."""

    task: FunctionTask
    context: QuantumContext
    input_refs: InputQuantizedConnection
    output_refs: OutputQuantizedConnection

    @property
    def seed(self) -> int:
        """A number that is the same whenever the same quantum runs."""
        values = self.context.quantum.dataId.required_values
        return int(hashlib.sha256(repr(values).encode()).hexdigest()[:8], 16)

    def option(self, name: str) -> int:
        """A number from the configuration."""
        return int(self.task.config.options[name])

    def read(self) -> dict[str, Any]:
        """Get all inputs."""
        return self.context.get(self.input_refs)


def digest(obj: Any) -> Any:
    """Describe an object so that equal ones have equal descriptions, of what JSON can hold."""
    match obj:
        case np.ndarray():
            content = hashlib.sha256(np.ascontiguousarray(obj).tobytes()).hexdigest()[:16]
            return [str(obj.dtype.descr), list(obj.shape), content]
        case Table():
            return {name: [digest(np.asarray(obj[name])), str(obj[name].unit)] for name in obj.colnames}
        case VisitImage():
            names = ("image", "mask", "variance", "psf", "sky_projection", "summary_stats", "band")
            return {name: digest(getattr(obj, name)) for name in names}
        case MaskedImage():
            return {name: digest(getattr(obj, name)) for name in ("image", "mask", "variance")}
        case dict():
            return {str(key): digest(value) for key, value in obj.items()}
        case list() | tuple() | set() | frozenset():
            return [digest(value) for value in obj]
        case None | bool() | int() | float() | str():
            return obj
    if hasattr(obj, "array") and hasattr(obj, "bbox"):
        return [type(obj).__name__, str(obj.bbox), str(getattr(obj, "unit", "")), digest(obj.array)]
    if hasattr(obj, "pixel_to_sky"):
        sky = obj.pixel_to_sky(x=np.array([30.0, 40.0]), y=np.array([20.0, 30.0]))
        return [type(obj).__name__, [*map(float, sky.ra.deg)], [*map(float, sky.dec.deg)]]
    if hasattr(obj, "compute_kernel_image"):
        return [type(obj).__name__, digest(obj.compute_kernel_image(x=30.0, y=20.0).array)]
    if hasattr(obj, "model_dump"):
        return obj.model_dump(mode="json")
    return f"{type(obj).__name__} {obj}"


def _array(call: Call) -> np.ndarray:
    size = call.option("size") if "size" in call.task.config.options else 100
    return np.random.default_rng(call.seed).normal(size=size)


def make_array(call: Call) -> dict[str, Any]:
    """Make an array of ``size`` numbers."""
    return {"o": _array(call)}


def make_dict(call: Call) -> dict[str, Any]:
    """Make a nested dictionary."""
    return {"o": {"seed": call.seed, "list": [1, {"two": 2.5}], "none": None}}


def make_unsendable(call: Call) -> dict[str, Any]:
    """Make something that is tied to this process."""
    return {"o": {"socket": open(os.devnull, "rb")}}


def make_table(call: Call) -> dict[str, Any]:
    """Make a table with units."""
    random = np.random.default_rng(call.seed)
    table = Table(
        {"id": np.arange(50), "flux": random.normal(size=50) * u.nJy, "flag": np.arange(50) % 2 == 0}
    )
    table["ra"] = random.normal(size=50).astype(np.float32)
    table["ra"].unit = u.deg
    return {"o": table}


def make_visit(call: Call) -> dict[str, Any]:
    """Make an image with every component."""
    from tests.support.codec_samples import make_visit_image

    image = make_visit_image()
    image.image.array[...] += call.seed % 1000
    return {"o": image}


def make_masked(call: Call) -> dict[str, Any]:
    """Make a masked image."""
    image = make_visit(call)["o"]
    return {"o": MaskedImage(image.image, mask=image.mask, variance=image.variance)}


def describe(call: Call) -> dict[str, Any]:
    """Describe all inputs."""
    return {"o": {"inputs": digest(call.read()), "init": digest(call.task.schema_in)}}


def describe_parts(call: Call) -> dict[str, Any]:
    """Describe parts of a late image, read one by one, and the whole after them."""
    handle = call.read()["i"]
    box = Box.factory[15:25, 30:50]
    found: dict[str, Any] = {"box": str(handle.get(component="bbox"))}
    for name in ("psf", "sky_projection", "summary_stats", "image", "mask", "variance", "masked_image"):
        if name in handle.ref.datasetType.storageClass.allComponents():
            found[name] = digest(handle.get(component=name))
    for name in ("image", "mask", "variance"):
        found[f"part of {name}"] = digest(handle.get(component=name, parameters={"bbox": box}))
    part = handle.get(parameters={"bbox": box})
    found["part"] = digest(part)
    part.image.array[...] = -1
    both = handle.get(component="components", parameters={"components": ["image", "unit"], "bbox": box})
    found["both"] = {name: digest(both[name]) for name in ("image", "unit")}
    found["whole"] = digest(handle.get())
    return {"o": found}


def describe_columns(call: Call) -> dict[str, Any]:
    """Describe parts of a late table."""
    handle = call.read()["i"]
    found = {
        "columns": list(handle.get(component="columns")),
        "rows": int(handle.get(component="rowcount")),
        "two": digest(handle.get(parameters={"columns": ["ra", "id"]})),
        "one": digest(handle.get(parameters={"columns": "flux"})),
        "whole": digest(handle.get()),
        "numpy": [str(name) for name in handle.get(storageClass="ArrowNumpy").dtype.names],
    }
    return {"o": found}


def spoil(call: Call) -> dict[str, Any]:
    """Describe an array, and then change it in place."""
    array = call.read()["i"]
    found = digest(array)
    array[...] = -1.0
    return {"o": {"seen": found}}


def spoil_dict(call: Call) -> dict[str, Any]:
    """Describe a dictionary, and then change it in place, deep inside too."""
    values = call.read()["i"]
    found = digest(values)
    values["list"][1]["two"] = -1
    values["more"] = 1
    return {"o": {"seen": found}}


def spoil_visit(call: Call) -> dict[str, Any]:
    """Describe an image, and then change it in place."""
    image = call.read()["i"]
    found = digest(image)
    image.image.array[...] = -1
    image.mask.array[...] = 0
    return {"o": {"seen": found}}


def put_and_change(call: Call) -> None:
    """Put one array under two names, changed in between."""
    array = _array(call)
    call.context.put(array, call.output_refs.o)
    array += 1.0
    call.context.put(array, call.output_refs.p)
    return None


def put_same(call: Call) -> dict[str, Any]:
    """Put one array under two names."""
    array = _array(call)
    return {"o": array, "p": array}


def put_view(call: Call) -> dict[str, Any]:
    """Put an array, and a part of it under another name."""
    array = _array(call)
    return {"o": array, "p": array[10:20]}


def put_half(call: Call) -> None:
    """Put one output of two, then give up."""
    call.context.put(_array(call), call.output_refs.o)
    try:
        raise HalfDoneError
    except HalfDoneError as error:
        raise AnnotatedPartialOutputsError.annotate(error, call.task, log=call.task.log) from error


class HalfDoneError(AlgorithmError):
    """An algorithm has made only a part of what it should."""

    @property
    def metadata(self) -> dict[str, int]:
        return {"half": 1}


def put_nothing_for_odd(call: Call) -> dict[str, Any] | None:
    """Put nothing for odd detectors, with no word about it."""
    if call.context.quantum.dataId["detector"] % 2:
        return None
    return {"o": _array(call)}


def gather(call: Call) -> dict[str, Any]:
    """Add up many arrays, and say how much memory it took."""
    arrays = call.read()["i"]
    total = sum(float(array[-1]) for array in arrays)
    length = sum(array.nbytes for array in arrays)
    return {"o": {"sum": total, "bytes": length, "memory": [read_peak("self"), read_peak(str(os.getppid()))]}}


def probe_ends(call: Call) -> dict[str, Any]:
    """Look at both ends of one large array."""
    array = call.read()["i"]
    found = [array.nbytes, float(array[0]), float(array[len(array) // 2]), float(array[-1])]
    return {"o": {"found": found, "memory": [read_peak("self"), read_peak(str(os.getppid()))]}}


def make_large(call: Call) -> dict[str, Any]:
    """Make a large array without a second one of its size."""
    array = np.zeros(call.option("size"))
    array[[0, len(array) // 2, -1]] = [1.0, 2.0, call.seed % 1000]
    return {"o": array}


def lose_chunks(broadcast: Any, outcomes: Any, records: Any) -> Any:
    """Run the group that records are for, without the objects that were sent to it."""
    from spark_butler.spark.worker_entry import run_next_level
    from spark_butler.temporaries import shuffle as parcels

    kept = (
        record
        for record in records
        if parcels.hops_left(record) > 1 or parcels.open_record(record).kind is not parcels.Kind.CHUNK
    )
    return run_next_level(broadcast, outcomes, kept)


def read_peak(process: str) -> int:
    """Read the greatest resident size that a process has had, in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


FUNCTIONS: dict[str, Callable[[Call], dict[str, Any] | None]] = {
    function.__name__: function
    for function in (
        describe,
        describe_columns,
        describe_parts,
        gather,
        make_array,
        make_dict,
        make_large,
        make_masked,
        make_table,
        make_unsendable,
        make_visit,
        probe_ends,
        put_and_change,
        put_half,
        put_nothing_for_odd,
        put_same,
        put_view,
        spoil,
        spoil_dict,
        spoil_visit,
    )
}
