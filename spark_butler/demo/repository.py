"""A repository with its datastore in an object store and its registry in SQLite."""

from __future__ import annotations

__all__ = ["make_repository"]

import os
from pathlib import Path

from lsst.daf.butler import Butler, Config


def make_repository(root: str | os.PathLike[str], datastore_root: str) -> Path:
    """Make a Butler repository.

    Parameters
    ----------
    root
        Directory of the configuration and of the registry's SQLite file.
    datastore_root
        Where the datasets go, ``s3://BUCKET/PREFIX/`` for instance. The object
        store must be within reach, as the environment describes it.

    Returns
    -------
    root
        The repository, to be opened with ``Butler.from_config``.

    Raises
    ------
    FileExistsError
        Raised if there is a repository already.
    """
    root = Path(root).absolute()
    # Otherwise makeRepo would put the datastore below `root` whatever the configuration says.
    Butler.makeRepo(root, Config({"datastore": {"root": datastore_root}}), forceConfigRoot=False)
    return root
