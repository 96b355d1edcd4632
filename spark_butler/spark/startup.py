"""Start of Spark in the background.

Runs in the driver.  Nothing here imports the middleware.
"""

from __future__ import annotations

__all__ = ["SparkStart", "launch_jvm_in_background"]

import logging
import os
import threading
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..errors import UserError
from ..text import best_effort
from ..worker.environment import limit_threads
from .jvm import JVM_OUTPUT, launch_jvm
from .preflight import check_workers
from .session import check_platform, make_spark_context, spark_is_up

if TYPE_CHECKING:
    from pyspark import SparkContext

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN = 1.0


# A command with one of these arguments needs no Spark.
_WITHOUT_SPARK = {"-h", "--help", "--dry-run", "--init-only", "--show", "serial", "--backend=serial"}


def launch_jvm_in_background(arguments: Collection[str] = ()) -> None:
    """Launch the JVM of a command in a thread, and limit the threads of libraries that are imported now.

    If the JVM does not start, `SparkStart` tries again and raises the error.
    In a terminal, what the JVM and the workers below it write to standard
    error is not shown at once, since it would spoil the progress bars.

    Parameters
    ----------
    arguments
        Arguments of the command, some of which need no JVM.
    """
    limit_threads()
    if not _WITHOUT_SPARK.isdisjoint(arguments):
        return
    # The engine uses the JVM too little to gain from Java's full compiler.
    os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
    if os.isatty(2):
        JVM_OUTPUT.hold()
    threading.Thread(target=_launch, name="jvm-start").start()


def _launch() -> None:
    try:
        check_platform()
        launch_jvm()
    except UserError as exc:
        logger.debug("Java was not launched: %s", exc)


class SparkStart:
    """Start of Spark in the background: its context and a check of its workers.

    Parameters
    ----------
    imports
        Names of the modules of the tasks.
    stores
        Addresses of places in object stores that workers must reach.

    Notes
    -----
    A context manager that stops Spark at the end, unless Spark ran before.
    If its body ends while Spark is starting, as for an empty graph, `__exit__`
    does not wait: Spark is stopped after its start, or ends with this process.

    `wait` and `__exit__` print the held output of the JVM.  After a `UserError`
    or Ctrl-C, `__exit__` does not print it, so that the error is the last line.
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
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._stop()
        if not isinstance(value, UserError | KeyboardInterrupt):
            JVM_OUTPUT.show()

    @property
    def has_failed(self) -> bool:
        """Whether Spark has failed to start, so that `wait` raises at once."""
        return self._error is not None

    def wait(self) -> SparkContext:
        """Wait until quanta can run.

        Raises
        ------
        spark_butler.errors.SessionError
            Raised if Spark does not start, or if its workers fail their check.
        """
        if self._is_ours:
            while self._thread.is_alive():
                JVM_OUTPUT.show()
                self._thread.join(_SECONDS_BETWEEN)
            JVM_OUTPUT.show()
        else:
            self._start()
        if self._error is not None:
            raise self._error
        assert self._context is not None
        return self._context

    def _start(self) -> None:
        try:
            self._context = make_spark_context(imports=self._imports)
            if not self._left.is_set():
                check_workers(self._context, self._imports, self._stores)
        except BaseException as exc:  # noqa: BLE001  (`wait` raises it)
            self._error = exc
        if self._left.is_set():
            self._stop()

    def _stop(self) -> None:
        """Stop the context, if this object has started it."""
        with self._stopping:
            context, self._context = self._context, None
        if self._is_ours and context is not None:
            # The JVM may have ended already, as after Ctrl-C under spark-submit.
            with best_effort("Can't stop Spark", level=logging.DEBUG):
                context.stop()
