"""Exceptions that spark-butler raises.  Every process uses this module."""

from __future__ import annotations

__all__ = [
    "CodecError",
    "EmptyGraphError",
    "EngineError",
    "FunctionError",
    "NotSentError",
    "NothingToDo",
    "OptionsError",
    "PlanError",
    "RepositoryError",
    "SessionError",
    "SparkButlerError",
    "StaysHereError",
    "UserError",
    "WorkerDiskError",
]

import pickle


class SparkButlerError(Exception):
    """Base class of the errors that this package raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows: the message, without frames of this package."""
        return [f"{type(self).__name__}: {self}"]


class UserError(SparkButlerError):
    """An argument of the caller can't be used; nothing was written.

    Commands print the message as one line and end with exit status 2.
    """


class OptionsError(UserError, ValueError):
    """An option, or a combination of options, has no meaning."""


class StaysHereError(OptionsError, pickle.PicklingError):
    """A function for workers uses an object that can't leave this process."""


class RepositoryError(UserError, LookupError):
    """A repository, or something named in it, is absent or can't be reached."""


class EmptyGraphError(UserError, LookupError):
    """A data query selects nothing, or nothing is left to be done for it."""


class NothingToDo(EmptyGraphError):  # it is no failure
    """All selected quanta have been done before."""


class PlanError(UserError, ValueError):
    """A quantum graph can't be cut into groups as asked."""


class SessionError(UserError, RuntimeError):
    """Spark, Java or Python on this machine can't run the engine."""


class EngineError(SparkButlerError, RuntimeError):
    """The engine itself failed, as opposed to a task."""


class WorkerDiskError(EngineError):
    """A local disk of a worker is full, so the backend has lost units of work."""


class FunctionError(SparkButlerError, RuntimeError):
    """A user's function on data IDs has raised an exception in a worker."""


class NotSentError(SparkButlerError, LookupError):
    """A function in a worker requests a dataset or an output that was not sent with its data IDs."""


class CodecError(SparkButlerError, ValueError):
    """A dataset can't be encoded or decoded."""
