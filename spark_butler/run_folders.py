"""Folders of single runs in the datastores of a repository.

Runs in the driver.  The name of a run is a text of the user and may contain any characters; only this
module joins it to an address.
"""

from __future__ import annotations

__all__ = ["path_below", "report_root", "run_folder"]

import urllib.parse

from lsst.resources import ResourcePath

from .errors import RepositoryError


def report_root(datastore_root: ResourcePath) -> ResourcePath:
    """Name the folder of the reports and notes of all runs."""
    return datastore_root.join("spark-butler-reports/", forceDirectory=True)


def run_folder(top: ResourcePath, run: str) -> ResourcePath:
    """Return the folder of a run, ``top/run/``, which is always below ``top``.

    Parameters
    ----------
    run
        Name of a RUN collection, or the beginning of such a name up to a slash.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if the name leads to another folder, as ``..`` would.
    """
    is_plain = "\0" not in run and not {"", ".", ".."}.intersection(run.split("/"))
    try:
        # Joining would expand, normalize or decode some names, or take them for addresses of their own.
        folder = ResourcePath(f"{top.geturl()}{urllib.parse.quote(run)}/", forceDirectory=True)
    except ValueError:
        is_plain = False
    if not is_plain or path_below(top, folder) != f"{run}/":
        raise RepositoryError(
            f"The run is {run!r}, which can't name a folder below {top}; expected names joined by single "
            "slashes, such as u/me/first; see `spark-butler status REPO` for the runs."
        )
    return folder


def path_below(top: ResourcePath, uri: ResourcePath) -> str | None:
    """Return the path of a file or folder relative to a folder, and `None` where it is not below.

    `lsst.resources.ResourcePath.relative_to` would decode a path twice.
    """
    path = uri.unquoted_path
    # Listings of local folders name no host, whether the folder's address does or not.
    is_same_store = uri.scheme == top.scheme and (top.isLocal or uri.netloc == top.netloc)
    if not is_same_store or not path.startswith(top.unquoted_path):
        return None
    return path.removeprefix(top.unquoted_path)
