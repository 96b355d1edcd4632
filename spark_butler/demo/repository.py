"""Repositories with the datastore in an object store and the registry in SQLite.

Runs in the process of ``spark-butler demo``, in tests and in benchmarks.
"""

from __future__ import annotations

__all__ = ["make_repository"]

import os
from pathlib import Path

from lsst.daf.butler import Butler, Config


def make_repository(root: str | os.PathLike[str], datastore_root: str) -> Path:
    """Make a Butler repository, and return its address for ``Butler.from_config``.

    Parameters
    ----------
    root
        Directory of the configuration and of the registry's SQLite file.
    datastore_root
        Address of the datastore, such as ``s3://BUCKET/PREFIX/``; the environment has the keys of the store.

    Raises
    ------
    FileExistsError
        Raised if there is a repository already.
    """
    root = Path(root).absolute()
    # Otherwise makeRepo would put the datastore below `root` whatever the configuration says.
    Butler.makeRepo(root, Config({"datastore": {"root": datastore_root}}), forceConfigRoot=False)
    return root
