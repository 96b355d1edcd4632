"""What a command starts before it imports the middleware, which takes two seconds.

That is Java, and after the imports the fork server of the workers.  Nothing
here imports the middleware.
"""

from __future__ import annotations

__all__ = ["begin", "close_fork_server", "fork_here", "fork_server_address", "wants_spark"]

import atexit
import logging
import os
import sys
import threading
from collections.abc import Sequence

from .errors import UserError
from .fork_server import ForkServer
from .jvm import import_launcher, jvm_is_there, launch_jvm, may_be_elsewhere
from .session import check_platform, limit_threads
from .stderr_relay import JVM_STDERR

logger = logging.getLogger(__name__)

_FORBIDDING = {
    *("-h", "--help", "--dry-run", "--show", "--init-only", "--enable-implicit-threading"),
    *("-@", "--options-file"),
}
_REPOSITORY = {"-b", "--butler-config"}
_PIPELINE = {"-p", "--pipeline", "-g", "--qgraph"}
_SECONDS = 10.0
_EXIT_SECONDS = 3.0
_HASH_SEED = "PYTHONHASHSEED"

_launching: threading.Thread | None = None
_server: ForkServer | None = None


def wants_spark(arguments: Sequence[str], *, has_pipeline: bool = False) -> bool:
    """Guess whether a command line leads to Spark.

    Parameters
    ----------
    arguments
        What stands behind the name of the program.
    has_pipeline
        Whether the program has a pipeline when none is named.

    Returns
    -------
    wants
        Whether it runs a pipeline or a graph, with a repository, and the
        files that it names are there.  Whoever is wrongly said no to waits
        two seconds longer.
    """
    if "_SPARK_BUTLER_COMPLETE" in os.environ:
        return False
    found = {}
    for name, value in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, joined = name.partition("=")
        value = joined if equals else value
        if name in _FORBIDDING or name.startswith("-@") or (name == "--backend" and value != "spark"):
            return False
        if name in _REPOSITORY | _PIPELINE:
            found[name] = value
    has_repository = not _REPOSITORY.isdisjoint(found)
    if not has_repository or (not has_pipeline and _PIPELINE.isdisjoint(found)):
        return False
    # Unlike pathlib's, it takes what can't be looked at for absent.
    return all("://" in place or os.path.exists(place.partition("#")[0]) for place in found.values())


def _fix_hash_seed() -> None:
    """Begin this program again with the hash seed that Spark gives its Python processes, unless it has one.

    Those that are forked from this one then are like those that are not.
    """
    if _HASH_SEED not in os.environ and sys.orig_argv:
        os.environ[_HASH_SEED] = "0"
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def begin() -> None:
    """Launch the JVM of this process beside what comes next, and let BLAS have one thread.

    What stands against it is said by those who need Spark, when all else that
    may be wrong has been looked at.
    """
    global _launching
    _fix_hash_seed()
    limit_threads()
    try:
        check_platform()
    except UserError:
        return
    _launching = threading.Thread(target=_launch, name="jvm-start", daemon=True)
    if not jvm_is_there():
        JVM_STDERR.hold()
        # Not in the thread, which would hold locks of imports when this process is forked.
        import_launcher()
        _launching.start()
        # It removes a folder of PySpark's when it is done.
        atexit.register(_launching.join, _EXIT_SECONDS)


def fork_here() -> None:
    """Fork the server for workers, at the first call after `begin`, when all imports are done."""
    global _launching, _server
    launching, _launching = _launching, None
    if launching is None or may_be_elsewhere(None, {}):
        return
    if launching.ident is not None:
        launching.join(_SECONDS)
    if not launching.is_alive():
        from .backends.daemon import prepare_server, serve

        _server = ForkServer.start(serve, prepare_server)


def fork_server_address() -> str | None:
    """Find at which socket daemons on this machine may ask for a fork."""
    return _server.address if _server is not None else None


def close_fork_server() -> None:
    """Let the fork server end, where no daemon will ask it."""
    global _server
    server, _server = _server, None
    if server is not None:
        server.close()


def _launch() -> None:
    try:
        launch_jvm(quick=not may_be_elsewhere(None, {}), stderr=JVM_STDERR)
    except UserError as exc:
        logger.debug("Java was not launched: %s", exc)
