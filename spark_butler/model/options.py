"""The options of a run, as one object that is passed whole."""

from __future__ import annotations

__all__ = ["Isolation", "RunOptions"]

import re
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from ..errors import OptionsError
from ..text import explain_invalid
from .limits import ResourceRequests

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
        None, ge=0, description="Further attempts after one that may have failed by chance."
    )
    resources: ResourceRequests = pydantic.Field(
        ResourceRequests(), description="Memory, time and attempts that tasks may have."
    )
    isolation: Isolation = pydantic.Field("group", description="What gets a process of its own.")
    fail_fast: bool = pydantic.Field(False, description="Stop at the first failure.")
    max_failures: str | None = pydantic.Field(
        None,
        description="Stop when so many quanta have failed, given as a number or as a percentage of all.",
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
