"""What a command starts before it imports the middleware, which takes two seconds.

That is Java.  Nothing here imports the middleware.
"""

from __future__ import annotations

__all__ = ["begin", "wants_spark"]

import atexit
import logging
import os
import threading
from collections.abc import Sequence

from .errors import UserError
from .jvm import jvm_is_there, launch_jvm, may_be_elsewhere
from .session import check_platform, limit_threads
from .stderr_relay import JVM_STDERR

logger = logging.getLogger(__name__)

_FORBIDDING = {
    *("-h", "--help", "--dry-run", "--show", "--init-only", "--enable-implicit-threading"),
    *("-@", "--options-file"),
}
_REPOSITORY = {"-b", "--butler-config"}
_PIPELINE = {"-p", "--pipeline", "-g", "--qgraph"}
_EXIT_SECONDS = 3.0


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


def begin() -> None:
    """Launch the JVM of this process beside what comes next, and let BLAS have one thread.

    What stands against it is said by those who need Spark, when all else that
    may be wrong has been looked at.
    """
    limit_threads()
    try:
        check_platform()
    except UserError:
        return
    if not jvm_is_there():
        JVM_STDERR.hold()
        launching = threading.Thread(target=_launch, name="jvm-start", daemon=True)
        launching.start()
        # It removes a folder of PySpark's when it is done.
        atexit.register(launching.join, _EXIT_SECONDS)


def _launch() -> None:
    try:
        launch_jvm(quick=not may_be_elsewhere(None, {}), stderr=JVM_STDERR)
    except UserError as exc:
        logger.debug("Java was not launched: %s", exc)
