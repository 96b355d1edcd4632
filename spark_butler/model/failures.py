"""Kinds of failures, which decide whether a quantum is retried.

Runs in the driver, workers and children.
"""

from __future__ import annotations

__all__ = ["FailureKind", "classify"]

import enum
from collections.abc import Iterator

from lsst.daf.butler import FileIntegrityError
from lsst.pipe.base import InvalidQuantumError, RepeatableQuantumError


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
    def may_pass(self) -> bool:
        """Whether another attempt may succeed; only these kinds are retried."""
        return self in (FailureKind.IO, FailureKind.MEMORY, FailureKind.LOST)


# Errors about a path that a second attempt would raise again.
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_IO_PACKAGES = frozenset({"aiobotocore", "aiohttp", "boto3", "botocore", "fsspec", "s3fs", "urllib3"})
_FINAL_CLIENT_ERRORS = frozenset({"404", "NoSuchKey", "NoSuchBucket", "InvalidBucketName", "NotImplemented"})


def classify(exc: BaseException) -> FailureKind:
    """Return the kind of failure that an exception means.

    Parameters
    ----------
    exc
        Exception raised by a task or by the middleware that ran it.
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
