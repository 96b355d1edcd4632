"""Kinds of failures, which decide whether a quantum is tried again."""

from __future__ import annotations

__all__ = ["FailureKind", "classify"]

import enum
from collections.abc import Iterator

from lsst.daf.butler import FileIntegrityError
from lsst.pipe.base import InvalidQuantumError, RepeatableQuantumError


class FailureKind(enum.StrEnum):
    """Why an attempt at a quantum failed."""

    TASK = "task"
    """The task raised; it would again."""

    REPEATABLE = "repeatable"
    """The task says itself that it would fail again."""

    INVALID = "invalid"
    """The task says that configuration or inputs make no sense: the run can only fail."""

    IO = "i/o"
    """The object store, the network or a disk failed."""

    MEMORY = "memory"
    """The process ran out of memory, or beyond its limit."""

    TIMEOUT = "timeout"
    """The attempt took longer than it may."""

    SIGNAL = "signal"
    """A signal that comes from the process's own doing ended it, such as a segmentation fault."""

    EXIT = "exit"
    """The task left the process."""

    LOST = "lost"
    """Something outside killed the process, or the machine is gone."""

    UPSTREAM = "upstream"
    """A temporary that it needs was lost and could not be made again."""

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may succeed."""
        return self in (FailureKind.IO, FailureKind.MEMORY, FailureKind.LOST)


# What an operating system says of a path that was wrong before and will be wrong again.
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_IO_PACKAGES = frozenset({"aiobotocore", "aiohttp", "boto3", "botocore", "fsspec", "s3fs", "urllib3"})
_FINAL_CLIENT_ERRORS = frozenset({"404", "NoSuchKey", "NoSuchBucket", "InvalidBucketName", "NotImplemented"})


def classify(exc: BaseException) -> FailureKind:
    """Find out what kind of failure an exception means.

    Parameters
    ----------
    exc
        What came out of a task or of the middleware around it.
    """
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
    """Follow an exception to what caused it."""
    seen: set[int] = set()
    each: BaseException | None = exc
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _is_io(exc: BaseException) -> bool:
    """Whether storage or network are to blame."""
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
