"""Start Spark while the driver does something else."""

from __future__ import annotations

__all__ = ["SparkStart"]

import contextlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .errors import UserError
from .session import make_spark_context, spark_is_up
from .stderr_relay import JVM_STDERR
from .worker_check import check_workers

if TYPE_CHECKING:
    from pyspark import SparkContext


class SparkStart:
    """Spark on its way up: its context, and workers that have been looked at.

    Parameters
    ----------
    imports
        Names of the modules that tasks are in.
    stores
        Addresses of places in object stores that workers must reach.

    Notes
    -----
    A context manager that stops Spark in the end, unless it was there before.
    Where its body is left while Spark still starts, as when a graph turns out
    to be empty, nobody waits for that: Spark is stopped when it has started,
    or ends with this process.

    What the JVM writes to standard error is not shown until somebody waits:
    when the body is left before by a `UserError` or Ctrl-C, it is of no
    interest, and what that error says is the last that is seen.
    """

    def __init__(self, imports: Sequence[str] = (), stores: Sequence[str] = ()):
        self._imports = tuple(imports)
        self._stores = tuple(stores)
        self._is_ours = not spark_is_up()
        self._context: SparkContext | None = None
        self._error: BaseException | None = None
        self._left = threading.Event()
        self._stopping = threading.Lock()
        self._thread = threading.Thread(target=self._start, name="spark-start", daemon=True)

    def __enter__(self) -> Self:
        if self._is_ours:
            JVM_STDERR.hold()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if isinstance(value, UserError | KeyboardInterrupt):
            JVM_STDERR.drop()
        else:
            JVM_STDERR.release()
        self._stop()

    @property
    def has_failed(self) -> bool:
        """Whether `wait` will raise at once."""
        return self._error is not None

    def wait(self) -> SparkContext:
        """Wait until quanta can run.

        Returns
        -------
        context
            The Spark context.

        Raises
        ------
        spark_butler.errors.SessionError
            Raised if Spark does not start, or if its workers can't work.
        """
        if self._is_ours:
            # From here on people wonder what it is that takes so long.
            JVM_STDERR.release()
            self._thread.join()
        else:
            self._start()
        if self._error is not None:
            raise self._error
        assert self._context is not None
        return self._context

    def _start(self) -> None:
        try:
            self._context = make_spark_context(imports=self._imports, only_engine=True, stderr=JVM_STDERR)
            if not self._left.is_set():
                check_workers(self._context, self._stores)
        except BaseException as exc:  # noqa: BLE001  (it is raised where it is waited for)
            self._error = exc
        if self._left.is_set():
            self._stop()

    def _stop(self) -> None:
        """Stop what this has started, as soon as it is there."""
        with self._stopping:
            context, self._context = self._context, None
        if self._is_ours and context is not None:
            with contextlib.suppress(Exception):
                # The JVM may be gone already, as after Ctrl-C under spark-submit.
                context.stop()
