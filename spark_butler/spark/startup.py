"""Start of Spark in the background.  Runs in the driver.  This module does not import the middleware."""

from __future__ import annotations

__all__ = ["SparkStart"]

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
from .session import check_platform, default_master_is_local, make_spark_context, set_imports, spark_is_up

if TYPE_CHECKING:
    from pyspark import SparkContext

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN = 1.0


# A command with one of these arguments needs no Spark.
_WITHOUT_SPARK = {"-h", "--help", "--dry-run", "--init-only", "--show", "serial", "--backend=serial"}


class SparkStart:
    """Start of Spark in the background: its JVM, its context and a check of its workers.

    Call `start` when the modules of the tasks are known.  If you call `launch`
    before, Spark starts while the driver imports the middleware and builds the
    graph.

    As a context manager, the object stops Spark at the end, unless Spark ran
    before.  The body may end while workers are being checked, for example
    because the graph is empty.  Then `__exit__` does not wait: Spark is stopped
    after the check, or ends with this process.

    `wait` and `__exit__` print the held output of the JVM.  After a `UserError`
    or Ctrl-C, `__exit__` does not print it, so that the error is the last line.
    """

    def __init__(self) -> None:
        self._launcher: threading.Thread | None = None
        self._starter: threading.Thread | None = None
        self._is_ours = True
        self._context: SparkContext | None = None
        self._error: BaseException | None = None
        self._left = threading.Event()
        self._stopping = threading.Lock()

    def launch(self, arguments: Collection[str] = ()) -> None:
        """Launch the JVM and, in local mode, start the context, unless the command's arguments need neither.

        On a cluster, only `start` starts the context, since a context occupies
        executors.  If something fails, `start` tries again, and `wait` raises
        the error.  Libraries that are imported from now on use one thread.  In
        a terminal, this object holds back the output of the JVM and its workers
        to standard error, since it would spoil the progress bars.
        """
        limit_threads()
        if not _WITHOUT_SPARK.isdisjoint(arguments):
            return
        # The engine uses the JVM too little to gain from Java's full compiler.
        os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
        if os.isatty(2):
            JVM_OUTPUT.hold()
        self._launcher = threading.Thread(target=self._launch, name="jvm-start")
        self._launcher.start()

    def start(self, imports: Sequence[str] = (), stores: Sequence[str] = ()) -> None:
        """Start the context, unless `launch` has, and check that workers find modules and reach stores."""
        self._starter = threading.Thread(
            target=self._start, args=(imports, stores), name="spark-start", daemon=True
        )
        self._starter.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if not isinstance(value, UserError | KeyboardInterrupt):
            JVM_OUTPUT.show()

    def close(self) -> None:
        """Stop Spark, unless it ran before."""
        self._left.set()
        if self._launcher is not None:
            self._launcher.join()
        self._stop()

    def wait(self) -> SparkContext:
        """Wait until quanta can run.

        Raises
        ------
        spark_butler.errors.SessionError
            Raised if Spark does not start, or if its workers fail their check.
        """
        assert self._starter is not None, "Call `start` before `wait`."
        while self._starter.is_alive():
            JVM_OUTPUT.show()
            self._starter.join(_SECONDS_BETWEEN)
        JVM_OUTPUT.show()
        if self._error is not None:
            raise self._error
        assert self._context is not None
        return self._context

    def _launch(self) -> None:
        try:
            check_platform()
            self._is_ours = not spark_is_up()
            launch_jvm()
            if self._is_ours and not self._left.is_set() and default_master_is_local():
                self._context = make_spark_context()
        except UserError as exc:
            logger.debug("Spark was not started: %s", exc)

    def _start(self, imports: Sequence[str], stores: Sequence[str]) -> None:
        try:
            if self._launcher is None:
                self._is_ours = not spark_is_up()
            else:
                self._launcher.join()
            if self._context is None:
                self._context = make_spark_context()
            if self._is_ours:
                set_imports(self._context, imports, stores)
            if not self._left.is_set():
                check_workers(self._context, imports, stores)
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
