"""Checks before a run that a repository exists and can be read and written.  Runs in the driver."""

from __future__ import annotations

__all__ = [
    "check_repository",
    "check_writeable",
    "may_write",
    "refuse_read_only",
    "register_run",
    "store_roots",
]

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from lsst.daf.butler import Butler, LimitedButler
from lsst.daf.butler.direct_butler import DirectButler
from lsst.resources import ResourcePath

from ..errors import RepositoryError
from ..text import translate_errors
from .store_checks import check_store


def check_repository(butler_config: str) -> list[ResourcePath]:
    """Check that a repository exists and its datastores answer; return the places where these keep files."""
    with translate_errors(RepositoryError, f"Can't look up the Butler repository {butler_config!r}"):
        where = Butler.get_repo_uri(butler_config, return_label=True)
    # Without this check, a configuration in a store that doesn't answer costs minutes of retries.
    check_store(where)
    with translate_errors(RepositoryError, f"Can't open the Butler repository {butler_config!r}"):
        try:
            with Butler.from_config(butler_config, writeable=False) as butler:
                if not isinstance(butler, DirectButler):
                    raise RepositoryError(
                        f"The Butler repository {butler_config!r} is served by a {type(butler).__name__}; "
                        "the engine needs direct access to registry and datastore."
                    )
                roots = store_roots(butler)
        except FileNotFoundError as exc:
            raise RepositoryError(
                f"There is no Butler repository at {butler_config!r}, nor an alias of that name; correct the "
                f"address, or make one by `butler create {butler_config}`."
            ) from exc
    for root in roots:
        check_store(root)
    return roots


def store_roots(butler: LimitedButler) -> list[ResourcePath]:
    """Return the places where the datastores of a repository keep files."""
    return [root for root in butler.get_datastore_roots().values() if root is not None]


def check_writeable(roots: Sequence[ResourcePath]) -> None:
    """Check that datastores may be written to."""
    for root in roots:
        check_store(root, write=True)
        if root.isLocal and not os.access(root.ospath, os.W_OK):
            raise RepositoryError(f"The datastore {root.ospath!r} can't be written to.")


def may_write(file: ResourcePath) -> bool:
    """Return whether a file on this machine can be written, in new folders if needed; true elsewhere."""
    if not file.isLocal:
        return True
    path = Path(file.ospath)
    place = next(folder for folder in path.parents if folder.exists())
    return place.is_dir() and os.access(place, os.W_OK) and not path.is_dir()


def refuse_read_only(repository: str) -> contextlib.AbstractContextManager[None]:
    """Translate errors of the first write to a registry into a `~spark_butler.errors.RepositoryError`."""
    return translate_errors(
        RepositoryError,
        f"The registry of {repository} can't be written to",
        remedy="A run needs write access to the database and to the datastore.",
    )


def register_run(butler: Butler, run: str) -> None:
    """Register an output run; as the first write of a run, this detects a read-only registry.

    If the run exists, its documentation is rewritten unchanged.
    """
    with refuse_read_only(f"run {run!r}"):
        if not butler.collections.register(run):
            documentation = butler.registry.getCollectionDocumentation(run)
            butler.registry.setCollectionDocumentation(run, documentation)
