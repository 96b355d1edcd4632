"""Notes of a run for later attempts at it: a JSON file beside the run's reports in the datastore.

Runs in the driver.  Earlier releases kept the same in the documentation string of
the run's collection, which is still read.
"""

from __future__ import annotations

__all__ = ["read_temporaries", "record_temporaries"]

import contextlib
import json
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

from lsst.daf.butler import Butler, LimitedButler, MissingCollectionError
from lsst.resources import ResourcePath

from ..atomic_write import atomic_write
from ..errors import RepositoryError
from ..run_folders import report_root, run_folder
from ..text import as_engine_error, translate_errors
from .checks import store_roots
from .database_retry import retry_database

_FILE = "notes.json"
_TEMPORARIES = "temporaries"
_OLD_HEADING = "Not retained in this run, or not always: "
_THREADS = 8


def record_temporaries(butler: LimitedButler, run: str, names: Collection[str]) -> None:
    """Add to the recorded temporary dataset types of a run; without a registry, do nothing."""
    if not names or not isinstance(butler, Butler):
        return
    known = retry_database("The notes can't be read", lambda: read_temporaries(butler, [run]))
    places = _find_places(butler, run)
    if known.issuperset(names) or not places:
        return
    content = {"format": 1, "run": run, _TEMPORARIES: sorted(known.union(names))}
    with (
        as_engine_error(f"The notes of run {run!r} can't be written to {places[0]}"),
        atomic_write(places[0]) as path,
    ):
        path.write_text(json.dumps(content, indent=2))


def read_temporaries(butler: Butler, runs: Iterable[str]) -> frozenset[str]:
    """Read the dataset types that were temporary in at least one attempt at one of several runs.

    Runs that don't exist are left out.
    """
    names: set[str] = set()
    places: list[ResourcePath] = []
    for run in runs:
        try:
            text = butler.registry.getCollectionDocumentation(run) or ""
        except MissingCollectionError:
            continue
        places += _find_places(butler, run)
        for line in text.splitlines():
            if line.startswith(_OLD_HEADING):
                names.update(name.strip() for name in line.removeprefix(_OLD_HEADING).split(","))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="spark-butler-notes") as pool:
        return frozenset(names).union(*pool.map(_read_names, places))


def _find_places(butler: Butler, run: str) -> list[ResourcePath]:
    """Return the addresses of the notes of a run; new notes are written to the first."""
    with contextlib.suppress(RepositoryError):
        # The name can't be a folder's, so the run has no notes.
        return [run_folder(report_root(root), run).join(_FILE) for root in store_roots(butler)]
    return []


def _read_names(uri: ResourcePath) -> frozenset[str]:
    """Read the dataset types from a file; none if the file is absent."""
    with translate_errors(
        RepositoryError,
        f"The notes of an output run, {uri}, can't be read",
        remedy="They list the dataset types that the run has not kept. Restore the file, or write to another "
        "run.",
    ):
        try:
            return frozenset(map(str, json.loads(uri.read())[_TEMPORARIES]))
        except FileNotFoundError:
            return frozenset()
