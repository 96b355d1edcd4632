"""Catalog of a run: the sources of all images as one table.  Runs in the process of the command."""

from __future__ import annotations

__all__ = ["FORMATS", "read_catalog", "write_catalog"]


from astropy.table import Table, vstack
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from ..atomic_write import atomic_write
from ..errors import RepositoryError, UserError
from ..repository.query import find_data_ids
from ..text import translate_errors

FORMATS = {"csv": "ascii.csv", "parquet": "parquet", "votable": "votable"}
"""Formats of catalogs, with the names that Astropy gives them."""


def read_catalog(butler: Butler, collection: str, *, where: str = "", dataset_type: str = "source") -> Table:
    """Read the tables of all images of a run, and join them in the order of their data IDs."""
    found = find_data_ids(butler, dataset_type, collections=(collection,), where=where)
    with translate_errors(RepositoryError, f"Can't read the tables of {collection}"):
        tables = [butler.get(ref) for ref in found.refs]
        return vstack(tables, metadata_conflicts="silent")


def write_catalog(catalog: Table, file: str, form: str, *, overwrite: bool = False) -> None:
    """Write a catalog to a file in one of `FORMATS`."""
    target = ResourcePath(file, forceDirectory=False)
    with translate_errors(UserError, f"Can't write {file}"):
        if not overwrite and target.exists():
            raise UserError(f"The file {file} exists; give --overwrite to replace it.")
        with atomic_write(target) as path:
            catalog.write(str(path), format=FORMATS[form], overwrite=True)
