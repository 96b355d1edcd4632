"""Keep Spark's classes as a JVM has them in memory, so that later ones start in half the time.

``python -m spark_butler.class_archive`` does it, and ``make install`` calls
that.  It is Java's own class data sharing (JEP 310 and JEP 350).
"""

from __future__ import annotations

__all__ = ["make_class_archive"]

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from .errors import SessionError
from .java import CLASS_ARCHIVE
from .session import make_spark_context

_END_SECONDS = 120.0


def make_class_archive(path: Path = CLASS_ARCHIVE) -> None:
    """Start Spark, let it do what it does in a run, and keep its classes.

    Parameters
    ----------
    path
        Where to keep them.  What is there is replaced when the new one is
        whole.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if Spark does not start, if this process has a JVM already, or
        if Java writes no archive.

    Notes
    -----
    An archive fits one build of Java and one set of jars at one place; a JVM
    that finds another ignores it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    process: subprocess.Popen[bytes] | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        context = make_spark_context("local[2]", only_engine=True, archive=partial)
        gateway = context._gateway
        process = getattr(gateway, "proc", None)
        if gateway is None or process is None or process.stdin is None:
            raise SessionError("This process has a JVM already, whose classes can't be kept.")
        count, sent = context.accumulator(0), context.broadcast(b"")
        pairs = context.parallelize([(n % 2, n) for n in range(4)], 2)
        pairs.partitionBy(2).foreach(lambda _: count.add(1 + len(sent.value)))
        sent.destroy()
        context.stop()
        gateway.shutdown()
        # Java writes the archive when it ends, and PySpark ends it so.
        process.stdin.close()
        if process.wait(_END_SECONDS) or not partial.is_file():
            raise SessionError(f"Java has written no archive of its classes to {path.parent}.")
        partial.replace(path)
    except subprocess.TimeoutExpired as exc:
        assert process is not None
        process.kill()
        raise SessionError(f"Java did not end within {_END_SECONDS:g} s, with its classes to write.") from exc
    except OSError as exc:
        raise SessionError(
            f"The archive of classes can't be written to {path.parent}: {exc.strerror}"
        ) from exc
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        make_class_archive()
    except SessionError as error:
        sys.exit(str(error))
