"""Launch of the JVM of this process.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["JVM_OUTPUT", "jvm_is_there", "launch_jvm"]

import os
import tempfile
from typing import IO

from ..errors import SessionError
from ..text import brief
from .java import find_java_home


class _JvmOutput:
    """What the JVM of this process, and the workers below it, write to standard error."""

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self._n_shown = 0

    def hold(self) -> None:
        """Keep what a JVM writes that is launched from now on in a file that ends with its users."""
        if self.file is None:
            self.file = tempfile.TemporaryFile()

    def show(self) -> None:
        """Write to standard error what was held since the last call."""
        if self.file is None:
            return
        # The JVM shares the position in the file, which must not be moved.
        while data := os.pread(self.file.fileno(), 1 << 16, self._n_shown):
            self._n_shown += os.write(2, data)


JVM_OUTPUT = _JvmOutput()
"""Output of the JVM; by default it goes to the standard error of this process at once."""


def jvm_is_there() -> bool:
    """Return whether this process has a JVM, its own or that of the ``spark-submit`` that has started it."""
    from pyspark import SparkContext

    return SparkContext._gateway is not None or "PYSPARK_GATEWAY_PORT" in os.environ


def launch_jvm() -> None:
    """Launch the JVM of this process, unless it is there.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if there is no Java that will do, or if it does not start.
    """
    if jvm_is_there():
        return
    from pyspark import SparkContext
    from pyspark.java_gateway import launch_gateway

    os.environ["JAVA_HOME"] = str(find_java_home())
    # Another thread may be launching it.
    with SparkContext._lock:
        if SparkContext._gateway is not None:
            return
        try:
            gateway = launch_gateway(popen_kwargs={"stderr": JVM_OUTPUT.file})  # type: ignore[no-untyped-call]
            SparkContext._ensure_initialized(gateway=gateway)
        except Exception as exc:
            raise SessionError(f"Spark did not start: {brief(exc)}") from exc
