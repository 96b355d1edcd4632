"""Options of a run, passed as one object.  The driver reads them."""

from __future__ import annotations

__all__ = [
    "Isolation",
    "ResourceRequests",
    "RunOptions",
    "StopRule",
    "TaskRequests",
    "explain_requests",
    "read_requests",
]

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import pydantic
import yaml
from lsst.resources import ResourcePath

from ..errors import OptionsError
from ..text import brief, explain_invalid
from .limits import Limits

MIB = 2**20


class TaskRequests(pydantic.BaseModel):
    """Requests for the quanta of a task, in the words of ``ctrl_bps``."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    timeout: float | None = pydantic.Field(None, gt=0, description="Seconds after which a quantum is killed.")
    request_memory: float | None = pydantic.Field(
        None, gt=0, alias="requestMemory", description="Resident memory that a quantum may have, in MB."
    )
    memory_multiplier: float | None = pydantic.Field(
        None, ge=1, alias="memoryMultiplier", description="Factor for the next attempt after too little."
    )
    memory_limit: float | None = pydantic.Field(
        None, gt=0, alias="memoryLimit", description="Memory up to which it grows, in MB."
    )
    number_of_retries: int | None = pydantic.Field(
        None, ge=0, alias="numberOfRetries", description="Number of retries after transient failures."
    )


class ResourceRequests(TaskRequests):
    """Requests for all tasks, and others for some tasks."""

    pipetask: Mapping[str, TaskRequests] = pydantic.Field(
        default_factory=dict, description="Requests for single tasks, by label."
    )

    @property
    def asks_for_memory(self) -> bool:
        """Whether any task has a request for memory."""
        return any(request.request_memory is not None for request in (self, *self.pipetask.values()))

    def limits(self, labels: Iterable[str], learned: Mapping[str, int] | None = None) -> dict[str, Limits]:
        """Return the limits of tasks by label, and raise if there are requests for other tasks.

        ``learned`` has the memory in bytes that tasks needed in earlier runs.
        """
        labels = list(labels)
        if unknown := sorted(set(self.pipetask) - set(labels)):
            raise OptionsError(
                f"--resources has requests for {', '.join(unknown)}; "
                f"the tasks of the pipeline are {', '.join(labels)}."
            )
        return {label: self._limits(label, (learned or {}).get(label, 0)) for label in labels}

    def _limits(self, label: str, learned: int) -> Limits:
        own = self.pipetask.get(label, TaskRequests())
        given = {**self.model_dump(exclude={"pipetask"}), **own.model_dump(exclude_none=True)}
        memory, cap = _to_bytes(given["request_memory"]), _to_bytes(given["memory_limit"])
        if memory is not None:
            if cap is not None and cap < memory:
                raise OptionsError(
                    f"--resources: memoryLimit of {label!r} is {given['memory_limit']:g} MB, less than its "
                    f"requestMemory of {given['request_memory']:g} MB."
                )
            memory = max(memory, learned if cap is None else min(learned, cap))
        defaults = Limits()
        multiplier, retries = given["memory_multiplier"], given["number_of_retries"]
        return Limits(
            timeout=given["timeout"],
            memory=memory,
            memory_multiplier=defaults.memory_multiplier if multiplier is None else multiplier,
            memory_cap=cap,
            retries=defaults.retries if retries is None else retries,
        )

    def with_options(self, **values: Any) -> Self:
        """Return a copy with other values for the tasks that have none of their own; `None` sets nothing."""
        return self.model_copy(update={name: value for name, value in values.items() if value is not None})


def _to_bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * MIB)


def read_requests(file: str) -> ResourceRequests:
    """Read a YAML file of requests with the keys of ``ctrl_bps``; under ``pipetask``, by task label.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if the file can't be read, or has other keys or values.
    """
    try:
        content = yaml.safe_load(ResourcePath(file, forceAbsolute=False).read())
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise OptionsError(f"--resources file {file!r} can't be read: {brief(exc)}") from exc
    if not isinstance(content, dict):
        raise OptionsError(f"--resources file {file!r} must contain a YAML mapping.")
    try:
        return ResourceRequests.model_validate(content)
    except pydantic.ValidationError as exc:
        raise OptionsError(f"--resources file {file!r}: {explain_requests(exc)}") from exc


def explain_requests(error: pydantic.ValidationError) -> str:
    """Return a line about the first wrong request."""
    known = [field.alias or name for name, field in TaskRequests.model_fields.items()]
    return explain_invalid(error, known=[*known, "pipetask"], what="request")


@dataclasses.dataclass(frozen=True)
class StopRule:
    """Rule that stops a run after failures."""

    fail_fast: bool = False

    most: int | None = None
    """Number of failures that stop it."""

    most_alike: int | None = None
    """Number of consecutive failures of one task, alike but for numbers in the message, that stop it."""


type Isolation = Literal["group", "quantum", "none"]
"""Unit that gets a process of its own."""


class RunOptions(pydantic.BaseModel):
    """Options for the execution of a quantum graph.

    The names are those of the options of ``pipetask run``.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if there is no such option, or if it can't have that value.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    temporary: tuple[str, ...] = pydantic.Field(
        (), description="Patterns for the names of dataset types that are temporary."
    )
    store: tuple[str, ...] | None = pydantic.Field(
        None, description="Patterns for the names of dataset types to store; all others are temporary."
    )
    group_by: Literal["auto", "fused", "quantum"] | tuple[str, ...] = pydantic.Field(
        "auto", description="Dimensions whose quanta share a group, or how to find them."
    )
    processes: int | None = pydantic.Field(
        None, ge=1, description="Greatest number of quanta to run at once; None leaves it to Spark."
    )
    timeout: float | None = pydantic.Field(None, gt=0, description="Seconds after which a quantum is killed.")
    retries: int | None = pydantic.Field(
        None, ge=0, description="Number of retries after transient failures."
    )
    resources: ResourceRequests = pydantic.Field(
        ResourceRequests(), description="Memory, time and attempts that tasks may have."
    )
    isolation: Isolation = pydantic.Field("group", description="The unit that runs in its own process.")
    fail_fast: bool = pydantic.Field(False, description="Stop at the first failure.")
    max_failures: str | None = pydantic.Field(
        None, description="Stop when so many quanta have failed, given as a number or as a percentage of all."
    )
    max_same_failures: int | None = pydantic.Field(
        None,
        ge=1,
        description="Stop when so many quanta of a task in a row have failed with the same message.",
    )
    skip_existing: bool = pydantic.Field(
        False, description="Don't run quanta whose metadata is in the output run."
    )
    clobber_outputs: bool = pydantic.Field(
        False, description="Replace what earlier attempts at the same quanta have left."
    )
    raise_on_partial_outputs: bool = pydantic.Field(True, description="Take partial outputs for a failure.")
    cores_per_quantum: int = pydantic.Field(1, ge=1, description="Cores that a task may use.")
    memory_per_quantum: str = pydantic.Field(
        "", description="Memory that a task may use, with a unit (MB without)."
    )
    debug: bool = pydantic.Field(False, description="Import the user's module `debug` in workers.")

    if not TYPE_CHECKING:

        def __init__(self, **options: Any):
            try:
                super().__init__(**options)
            except pydantic.ValidationError as exc:
                raise OptionsError(explain_invalid(exc, known=RunOptions.model_fields, depth=1)) from exc

    @pydantic.field_validator("group_by", mode="before")
    @classmethod
    def _read_group_by(cls, value: Any) -> Any:
        if not isinstance(value, str) or value in ("auto", "fused", "quantum"):
            return value
        names = tuple(name.strip() for name in value.split(","))
        if not all(names):
            raise ValueError("expected auto, fused, or names of dimensions")
        return names

    @pydantic.field_validator("max_failures")
    @classmethod
    def _check_max_failures(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"[1-9][0-9]*%?", text):
            raise ValueError("expected a number such as 10 or a percentage such as 5%")
        return text
