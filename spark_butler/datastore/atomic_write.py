"""Files that are written whole or not at all."""

from __future__ import annotations

__all__ = ["check_destination", "whole_file"]

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lsst.resources import ResourcePath, ResourcePathExpression

from ..errors import OptionsError


def check_destination(destination: ResourcePathExpression) -> None:
    """Look whether a provenance graph can be written, before there is anything to write.

    Parameters
    ----------
    destination
        Where it is to go.

    Raises
    ------
    OptionsError
        Raised if it can't.
    """
    uri = ResourcePath(destination, forceDirectory=None)
    if uri.getExtension() != ".qg":
        raise OptionsError(f"The provenance graph {str(destination)!r} needs a name that ends in .qg.")
    if not uri.isLocal:
        return
    folder = Path(uri.ospath).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(uri.ospath).is_dir():
        raise OptionsError(f"The provenance graph {str(destination)!r} can't be written there.")


@contextlib.contextmanager
def whole_file(destination: ResourcePathExpression) -> Iterator[Path]:
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
