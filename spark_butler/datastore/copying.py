"""Copies of files into a datastore.

Runs in workers, and in the driver for the serial backend and for init-inputs.
"""

from __future__ import annotations

__all__ = ["CopyResult", "FileCopy", "copy_file"]

import dataclasses

from lsst.resources import ResourcePath

from ..text import brief


@dataclasses.dataclass(frozen=True, slots=True)
class FileCopy:
    """A file to copy."""

    # It may be signed, and hold a token.
    source: ResourcePath = dataclasses.field(repr=False)
    """Where it is."""

    target: str
    """Address of the copy."""

    size: int
    """Its length in bytes; negative if it is not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class CopyResult:
    """Result of a copy."""

    target: str
    """Address of the copy."""

    size: int = 0
    """Its length in bytes."""

    error: str = ""
    """The reason, without secrets, if there is no copy."""


def copy_file(copy: FileCopy) -> CopyResult:
    """Copy a file, over one that an earlier attempt may have left.

    Returns
    -------
    result
        The result; this function does not raise for what a store does.
    """
    try:
        target = ResourcePath(copy.target)
        target.transfer_from(copy.source, transfer="copy", overwrite=True, multithreaded=False)
        size = target.size()
    except Exception as exc:  # noqa: BLE001  (the errors of several libraries)
        return CopyResult(copy.target, error=brief(exc))
    if copy.size not in (-1, size):
        return CopyResult(copy.target, error=f"the copy has {size} bytes; expected {copy.size}")
    return CopyResult(copy.target, size)
