"""Arguments and standard error of a driver below the JVM of ``spark-submit``.  Runs in the driver."""

from __future__ import annotations

__all__ = ["check_encoding", "print_stderr", "submit_encoding"]

import logging
import os
import stat
from collections.abc import Sequence

from ..errors import OptionsError
from ..text import best_effort
from . import _pyspark
from .jvm import launch_jvm


def check_encoding(arguments: Sequence[str]) -> None:
    """Raise an `OptionsError` if ``spark-submit`` has replaced characters of the arguments.

    If its locale is not of UTF-8, or is not installed, its JVM replaces each
    byte of a character that is not ASCII by a question mark.  Such a character
    has at least two bytes.
    """
    garbled = [each for each in arguments if "??" in each or "\ufffd" in each]
    if garbled and (encoding := submit_encoding()) not in ("", "UTF-8"):
        raise OptionsError(
            f"spark-submit has replaced characters that are not ASCII by question marks ({garbled[0]!r}), "
            f"since the encoding of its locale is {encoding}. Run `export LC_ALL=C.UTF-8` first."
        )


def print_stderr(line: str) -> bool:
    """Print a line on the standard error of ``spark-submit``; if this returns false, use ``sys.stderr``.

    ``spark-submit`` merges standard output and error of this process.  Its JVM
    prints the line instead.
    """
    if "PYSPARK_GATEWAY_PORT" not in os.environ or not _streams_are_one():
        return False
    try:
        _pyspark.print_in_jvm(line)
    except Exception:  # noqa: BLE001  (the JVM may be gone, or PySpark)
        return False
    return True


def submit_encoding() -> str:
    """Return the encoding in which ``spark-submit`` passes arguments; empty without ``spark-submit``."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        return ""
    with best_effort("Can't ask the JVM for its encoding", level=logging.DEBUG):
        launch_jvm()
        return _pyspark.java_property("sun.jnu.encoding")
    return ""


def _streams_are_one() -> bool:
    """Return whether standard output and error of this process are the same pipe."""
    try:
        out, err = os.fstat(1), os.fstat(2)
    except OSError:
        return False
    return stat.S_ISFIFO(out.st_mode) and (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)
