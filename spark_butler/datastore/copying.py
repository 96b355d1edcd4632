"""Copies of files into a datastore.  Runs in workers; in the driver for serial runs and init-inputs."""

from __future__ import annotations

__all__ = ["CopyResult", "FileCopy", "copy_file"]

import dataclasses

from lsst.resources import ResourcePath

from ..text import brief


@dataclasses.dataclass(frozen=True, slots=True)
class FileCopy:
    """A file to copy."""

    # The address may be signed, and contain a token.
    source: ResourcePath = dataclasses.field(repr=False)
    """Address of the file."""

    target: str

    size: int
    """Length of the file in bytes; negative if unknown."""


@dataclasses.dataclass(frozen=True, slots=True)
class CopyResult:
    """Result of a copy."""

    target: str

    error: str = ""
    """Reason why the copy failed, without secrets; empty after a success."""


def copy_file(copy: FileCopy) -> CopyResult:
    """Copy a file, and replace an earlier attempt's copy; the result has the error of the store, if any."""
    try:
        target = ResourcePath(copy.target)
        target.transfer_from(copy.source, transfer="copy", overwrite=True, multithreaded=False)
        size = target.size()
    except Exception as exc:  # noqa: BLE001  (the errors of several libraries)
        return CopyResult(copy.target, error=brief(exc))
    if copy.size not in (-1, size):
        return CopyResult(copy.target, error=f"the copy has {size} bytes; expected {copy.size}")
    return CopyResult(copy.target)
