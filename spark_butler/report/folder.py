"""Folders of reports and status files, beside the repository's datasets, one for each attempt at a run.

Runs in the driver, and in the commands that show runs.

No other files in the store have names like these, and tools of the Butler see
only registered datasets.
"""

from __future__ import annotations

__all__ = ["AttemptFolder", "find_attempts", "new_attempt", "read_json"]

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable
from typing import Any

from lsst.resources import ResourcePath

from ..run_folders import path_below, report_root, run_folder

_STAMP = re.compile(r"(.+)/(\d{8}T\d{6}\d{3}Z)/[^/]+", re.DOTALL)
_ANY_FILE = re.compile(r"(status|report)\.json$")


@dataclasses.dataclass(frozen=True)
class AttemptFolder:
    """The folder of one attempt at a run."""

    run: str
    """The output RUN collection."""

    stamp: str
    """Start of the attempt; later attempts sort last."""

    uri: ResourcePath
    """Address of the folder."""

    @property
    def status_file(self) -> ResourcePath:
        """The last status that the driver wrote."""
        return self.uri.join("status.json")

    @property
    def report_file(self) -> ResourcePath:
        """The report as data."""
        return self.uri.join("report.json")

    @property
    def page_file(self) -> ResourcePath:
        """The report as a page."""
        return self.uri.join("report.html")

    @property
    def log_requests(self) -> ResourcePath:
        """Folder with requests for logs of running quanta."""
        return self.uri.join("logs/", forceDirectory=True)

    @property
    def cancel_file(self) -> ResourcePath:
        """File whose presence requests the end of the attempt."""
        return self.uri.join("cancel")


def new_attempt(datastore_root: ResourcePath, run: str, started: datetime.datetime) -> AttemptFolder:
    """Return the folder of a new attempt."""
    stamp = f"{started:%Y%m%dT%H%M%S}{started.microsecond // 1000:03d}Z"
    uri = run_folder(report_root(datastore_root), run).join(f"{stamp}/", forceDirectory=True)
    return AttemptFolder(run, stamp, uri)


def find_attempts(datastore_roots: Iterable[ResourcePath], run: str | None = None) -> list[AttemptFolder]:
    """Return the attempts that left a status or a report, oldest first.

    Parameters
    ----------
    run
        Only attempts at this run, or at runs whose names begin with it and a
        slash, as the runs of a chain do.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if the name can't be the name of a run.
    """
    found: dict[tuple[str, str], AttemptFolder] = {}
    for root in datastore_roots:
        top = report_root(root)
        start = top if run is None else run_folder(top, run)
        for uri in ResourcePath.findFileResources([start], file_filter=_ANY_FILE, grouped=False):
            path = path_below(top, uri)
            if path is not None and (match := _STAMP.fullmatch(path)) is not None:
                found[match[1], match[2]] = AttemptFolder(match[1], match[2], uri.dirname())
    return sorted(found.values(), key=lambda attempt: (attempt.stamp, attempt.run))


def read_json(uri: ResourcePath) -> dict[str, Any] | None:
    """Read a JSON file; `None` if it is absent."""
    try:
        content = json.loads(uri.read())
    except FileNotFoundError:
        return None
    return content if isinstance(content, dict) else None
