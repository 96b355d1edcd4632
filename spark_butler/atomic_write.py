"""Atomic writes of files.  Every process uses this module."""

from __future__ import annotations

__all__ = ["atomic_write", "write_at_once"]

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lsst.resources import ResourcePath, ResourcePathExpression


@contextlib.contextmanager
def atomic_write(destination: ResourcePathExpression) -> Iterator[Path]:
    """Context that writes a file, which may be on another machine, completely or not at all.

    Yields the path of a temporary file to write.  At the end of the context it is moved to the destination,
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
    # A fixed name, so that the next attempt replaces the file of a killed one.
    path = final.with_name(f".{final.name}.partial")
    try:
        yield path
        path.replace(final)
    finally:
        path.unlink(missing_ok=True)


def write_at_once(destination: ResourcePath, data: bytes) -> None:
    """Write a file that others may be reading; they find all of the new content or of the old."""
    if not destination.isLocal:
        # Object stores write at once by themselves.
        destination.write(data)
        return
    with atomic_write(destination) as path:
        path.write_bytes(data)
