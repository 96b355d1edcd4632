"""Files that are written whole or not at all; used by the driver."""

from __future__ import annotations

__all__ = ["atomic_write"]

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lsst.resources import ResourcePath, ResourcePathExpression


@contextlib.contextmanager
def atomic_write(destination: ResourcePathExpression) -> Iterator[Path]:
    """Write a file so that there is a whole one or none.

    Parameters
    ----------
    destination
        Where it is to go, which may be on another machine.

    Yields
    ------
    path
        Where to write.  What is there in the end goes to the destination,
        unless an exception is raised.
    """
    uri = ResourcePath(destination, forceDirectory=False)
    if not uri.isLocal:
        with tempfile.TemporaryDirectory(prefix="spark-butler-") as folder:
            path = Path(folder, uri.basename())
            yield path
            uri.transfer_from(ResourcePath(str(path)), transfer="copy", overwrite=True)
        return
    final = Path(uri.ospath)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Always of this name, so that the next attempt replaces what a killed one has left.
    path = final.with_name(f".{final.name}.partial")
    try:
        yield path
        path.replace(final)
    finally:
        path.unlink(missing_ok=True)
