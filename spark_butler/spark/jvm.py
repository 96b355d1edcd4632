"""Launch of the JVM of this process.  Runs in the driver."""

from __future__ import annotations

__all__ = ["JVM_OUTPUT", "launch_jvm"]

import os
import tempfile
from collections.abc import Mapping
from typing import IO

from ..errors import SessionError
from ..text import translate_errors
from . import _pyspark
from .java import find_java_home


class _JvmOutput:
    """Standard error of the JVM of this process, and of the workers below it."""

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self._n_shown = 0

    def hold(self) -> None:
        """Hold the output of a JVM that is launched later in a temporary file."""
        if self.file is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process

    def show(self) -> None:
        """Write the output that was held since the last call to standard error."""
        if self.file is None:
            return
        # The JVM shares the position in the file, which must not be moved.
        while data := os.pread(self.file.fileno(), 1 << 16, self._n_shown):
            self._n_shown += os.write(2, data)


JVM_OUTPUT = _JvmOutput()
"""Output of the JVM; by default it goes to the standard error of this process at once."""


def launch_jvm(conf: Mapping[str, str] | None = None) -> None:
    """Launch the JVM of this process, unless it runs already.

    ``conf`` has settings of the JVM itself, such as ``spark.driver.memory``.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if no Java is found that Spark can use, or if the JVM does not start.
    """
    if not _pyspark.jvm_is_up():
        os.environ["JAVA_HOME"] = str(find_java_home())
    with translate_errors(SessionError, "Spark did not start"):
        _pyspark.launch_jvm(conf or {}, JVM_OUTPUT.file)
