"""The parent of all Python workers of an executor, with the middleware already imported.

Spark forks Python workers from a daemon.  With this module in
``spark.python.daemon.module`` the workers have everything imported when they
start, and share the memory of it.  Where the driver has left a fork server on
this machine, the daemon is a fork of that, and imports nothing again.
"""

from __future__ import annotations

__all__ = ["import_for_workers", "main", "prepare_server", "remove_dead_sockets", "serve"]

import contextlib
import gc
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ..fork_server import FORK_SERVER_VARIABLE, ask_fork_server, wait_for_fork

_SOCKET = re.compile(r"\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.sock")
_YOUNG_SECONDS = 5.0
_kept: list[object] = []

# What each worker would import in its first Spark task.
_IN_ANY_CASE = (
    *("pyspark.worker", "spark_butler.backends.spark", "lsst.daf.butler.formatters.logs"),
    *("boto3.s3.inject", "encodings.idna"),
)


def remove_dead_sockets(folder: Path) -> None:
    """Remove the sockets that daemons have left which were killed.

    Parameters
    ----------
    folder
        Where daemons make their sockets.
    """
    try:
        bound = Path("/proc/net/unix").read_text()
    except OSError:
        # Not Linux; to ask a daemon that lives would make it fork a worker.
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
    """Send what is printed to standard error; standard output is for words to Spark."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def prepare_server() -> None:
    """Import what workers need whatever the tasks are, and keep the garbage collector off it."""
    _import_in_any_case()
    _keep_collector_off()


def _import_in_any_case() -> None:
    from ..warmth import import_for_children
    from . import slots  # noqa: F401

    import_for_children(_IN_ANY_CASE)


def _keep_collector_off() -> None:
    """Spare the garbage collector, which would go through all that is there every time."""
    gc.collect()
    gc.freeze()


def import_for_workers() -> None:
    """Import what workers need: the middleware, and the modules of tasks as far as they can be imported."""
    from ..session import IMPORTS_VARIABLE
    from ..warmth import import_for_children

    _import_in_any_case()
    tasks = os.environ.get(IMPORTS_VARIABLE, "")
    # Where tasks are known they import what they need of this; it takes half a second.
    import_for_children(tasks.split(",") if tasks else ["lsst.images"])


def serve() -> None:
    """Import what workers need, keep the garbage collector off it, and fork workers for Spark."""
    from pyspark import SparkContext, daemon

    from ..import_times import note_imports, process_start

    # A fork of the driver has its way to Java.  Objects that go would close files, so it is kept.
    _kept.append((SparkContext._gateway, SparkContext._jvm))
    SparkContext._gateway = SparkContext._jvm = None
    with _keep_stdout():
        import_for_workers()
    # Half of it is imported before this function can begin.
    note_imports(process_start())
    if folder := os.environ.get("PYTHON_WORKER_FACTORY_SOCK_DIR"):
        with contextlib.suppress(OSError):
            remove_dead_sockets(Path(folder))
    # pyspark.daemon collects after each Spark task.
    _keep_collector_off()
    daemon.manager()


def main() -> int:
    """Serve, or let a fork do it that has everything imported already; return the exit status."""
    address = os.environ.get(FORK_SERVER_VARIABLE)
    fork = ask_fork_server(address) if address else None
    if fork is not None:
        return wait_for_fork(fork)
    serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
