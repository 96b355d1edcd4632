"""Daemon that forks the Python workers of an executor, with the middleware already imported.

Runs in a process of its own on each executor, and in local mode on the driver's
machine.  Spark starts this module if ``spark.python.daemon.module`` names it;
workers then share the memory of what it has imported.
"""

from __future__ import annotations

__all__ = ["import_for_workers", "prefer_compiled", "remove_dead_sockets", "serve"]

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
_IN_ANY_CASE = ("pyspark.worker", "spark_butler.spark.backend", "lsst.daf.butler.formatters.logs")


def remove_dead_sockets(folder: Path) -> None:
    """Remove the sockets of killed daemons from the folder of the sockets."""
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


def prefer_compiled(places: list[str]) -> None:
    """Move the archives of an installed PySpark behind all other places of an import path, in place.

    Spark puts them first.  They hold the modules of the installation that they lie in, but Python
    compiles modules of archives each time that it imports them.  Archives of any other PySpark than
    the first one on the path stay where they are.
    """
    folders = (Path(place, "pyspark") for place in places)
    if home := next((folder for folder in folders if (folder / "__init__.py").is_file()), None):
        places.sort(key=lambda place: home in Path(place).parents)


def import_for_workers() -> bool:
    """Import the middleware, and those modules of tasks that can be imported.

    Returns whether this process can be forked: no module has started threads.  The environment
    names those that have.
    """
    from ..worker.environment import IMPORTS_VARIABLE, S3_MODULES
    from ..worker.state import NOT_PRELOADED_VARIABLE
    from .worker_entry import worker_state

    preloader = worker_state().preloader
    preloader.import_modules(_IN_ANY_CASE)
    tasks = os.environ.get(IMPORTS_VARIABLE, "")
    # A run names its tasks, which import what they need of lsst.images, and the modules of its stores.
    threaded = preloader.import_modules(tasks.split(",") if tasks else ["lsst.images", *S3_MODULES])
    if threaded:
        preloader.exclude(threaded)
        known = os.environ.get(NOT_PRELOADED_VARIABLE, "")
        os.environ[NOT_PRELOADED_VARIABLE] = ",".join(filter(None, (known, *threaded)))
    return not threaded


def serve() -> None:
    """Import what workers need, exclude it from garbage collection, and fork workers for Spark."""
    prefer_compiled(sys.path)
    from ._pyspark import serve_workers

    with _keep_stdout():
        is_fit = import_for_workers()
        from .worker_entry import worker_state
    if not is_fit:
        # Threads can't be ended from outside; a fresh process leaves their modules out.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Half of it was imported before this function began.
    worker_state().clock.record_startup()
    if folder := os.environ.get("PYTHON_WORKER_FACTORY_SOCK_DIR"):
        with contextlib.suppress(OSError):
            remove_dead_sockets(Path(folder))
    # pyspark.daemon collects garbage after each Spark task, and would visit all modules every time.
    gc.collect()
    gc.freeze()
    serve_workers()


if __name__ == "__main__":
    serve()
