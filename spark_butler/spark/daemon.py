"""Daemon that forks the Python workers of an executor, with the middleware already imported.

Runs in a process of its own on each executor, and in local mode on the driver's
machine.  Spark starts this module if ``spark.python.daemon.module`` names it;
workers then share the memory of what it has imported.
"""

from __future__ import annotations

__all__ = ["import_for_workers", "remove_dead_sockets", "serve"]

import contextlib
import gc
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_SOCKET = re.compile(r"\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.sock")
_YOUNG_SECONDS = 5.0

# What each worker would import in its first Spark task.
_IN_ANY_CASE = (
    *("pyspark.worker", "spark_butler.spark.backend", "lsst.daf.butler.formatters.logs"),
    *("boto3.s3.inject", "encodings.idna"),
)


def remove_dead_sockets(folder: Path) -> None:
    """Remove the sockets of killed daemons.

    Parameters
    ----------
    folder
        Folder of the sockets.
    """
    try:
        bound = Path("/proc/net/unix").read_text()
    except OSError:
        # Not Linux; connecting to a daemon that lives would make it fork a worker.
        return
    for path in folder.iterdir():
        if str(path) in bound:
            continue
        # A young one may belong to a daemon that does not listen yet.
        with contextlib.suppress(OSError):
            if _SOCKET.fullmatch(path.name) and time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    try:
                        probe.connect(str(path))
                    except ConnectionRefusedError:
                        path.unlink()


@contextlib.contextmanager
def _keep_stdout() -> Iterator[None]:
    """Redirect standard output to standard error; Spark reads a port number from standard output."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def import_for_workers() -> None:
    """Import the middleware, and those modules of tasks that can be imported."""
    from ..worker.environment import IMPORTS_VARIABLE
    from ..worker.preload import import_for_children
    from . import worker_entry  # noqa: F401

    import_for_children(_IN_ANY_CASE)
    tasks = os.environ.get(IMPORTS_VARIABLE, "")
    # Known tasks import what they need of lsst.images, which takes half a second.
    import_for_children(tasks.split(",") if tasks else ["lsst.images"])


def serve() -> None:
    """Import what workers need, exclude it from garbage collection, and fork workers for Spark."""
    from ._pyspark import serve_workers

    with _keep_stdout():
        from ..worker.clock import note_imports, process_start

        import_for_workers()
    # Half of it was imported before this function began.
    note_imports(process_start())
    if folder := os.environ.get("PYTHON_WORKER_FACTORY_SOCK_DIR"):
        with contextlib.suppress(OSError):
            remove_dead_sockets(Path(folder))
    # pyspark.daemon collects garbage after each Spark task, and would visit all modules every time.
    gc.collect()
    gc.freeze()
    serve_workers()


if __name__ == "__main__":
    serve()
