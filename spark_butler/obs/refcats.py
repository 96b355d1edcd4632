"""Ingest reference catalogs, cut into the HTM level 7 shards that tasks look up by region."""

from __future__ import annotations

__all__ = ("BandColumns", "ingest_refcats", "parse_band_columns")

import dataclasses
import logging
import re
import warnings
from collections.abc import Iterable, Sequence

import astropy.table
import astropy.time
import astropy.units as u
import numpy as np
import pyarrow.parquet
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DatasetType
from lsst.daf.butler.formatters.parquet import arrow_to_astropy
from lsst.pipe.base import Instrument
from lsst.resources import ResourcePath, ResourcePathExpression
from lsst.sphgeom import HtmPixelization, LonLat, UnitVector3d

from ..errors import RepositoryError, UserError
from ..text import suggest
from .camera.raw_fits import display_name
from .repository import check_run, expand_paths

logger = logging.getLogger(__name__)

_VOTABLES = (".vot", ".votable", ".xml", ".vot.gz", ".votable.gz", ".xml.gz")
_SUFFIXES = (".fits", ".fits.gz", ".ecsv", ".csv", ".parquet", ".parq", *_VOTABLES)
_FORMATS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", **dict.fromkeys(_VOTABLES, "votable")}
_LEVEL = 7
_MOTIONS = (
    # Name in LSST catalogs, in Gaia's, and the units of both.
    ("pm_ra", "pmra", u.rad / u.yr, u.mas / u.yr),
    ("pm_dec", "pmdec", u.rad / u.yr, u.mas / u.yr),
    ("pm_raErr", "pmra_error", u.rad / u.yr, u.mas / u.yr),
    ("pm_decErr", "pmdec_error", u.rad / u.yr, u.mas / u.yr),
    ("parallax", "parallax", u.rad, u.mas),
    ("parallaxErr", "parallax_error", u.rad, u.mas),
)
_KEPT = re.compile(r"epoch|pm_(ra|dec)(_?[eE]rr)?|parallax(_?[eE]rr)?|coord_(ra|dec)_?[eE]rr")
"""Columns beside positions and fluxes that are kept where an LSST reference catalog has them."""


@dataclasses.dataclass(frozen=True)
class BandColumns:
    """Where a table has the brightness of a band: a flux or an AB magnitude, and perhaps its error."""

    band: str
    value: str
    error: str | None = None


def parse_band_columns(text: str) -> BandColumns:
    """Parse ``BAND=COLUMN`` or ``BAND=COLUMN,ERROR_COLUMN``."""
    if (match := re.fullmatch(r"(\w+)=([^,=\s]+)(?:,([^,=\s]+))?", text)) is None:
        raise UserError(f"{text!r} is not of the form BAND=COLUMN or BAND=COLUMN,ERROR_COLUMN")
    return BandColumns(*match.groups())


def ingest_refcats(  # noqa: PLR0913
    butler: Butler,
    name: str,
    paths: Iterable[ResourcePathExpression],
    *,
    bands: Sequence[BandColumns] = (),
    ra_column: str = "ra",
    dec_column: str = "dec",
    id_column: str = "id",
    output_run: str | None = None,
    replace: bool = False,
    failures: dict[str, str] | None = None,
) -> list[DatasetRef]:
    """Ingest a reference catalog as datasets of type ``name``, one for each HTM level 7 trixel with sources.

    Each is an `astropy.table.Table` with ``id``, ``coord_ra`` and ``coord_dec`` (radians), and ``BAND_flux``
    and ``BAND_fluxErr`` (nJy) for each band.

    Parameters
    ----------
    paths
        Tables (FITS, ECSV, CSV, Parquet, VOTable), directories, globs or URIs.  A table with columns
        ``coord_ra`` and ``coord_dec`` is taken for an LSST reference catalog (radians, nJy), any other for
        one with ICRS positions in degrees.  Proper motions and parallaxes are kept where it has them under
        Gaia's names and units (``pmra``, ``pmdec``, ``parallax``, and ``ref_epoch`` in Julian years).
    bands
        Columns with the brightness of each band.  A column with the unit mag, or with no unit and ``mag`` in
        its name, holds AB magnitudes; any other a flux in its unit, or nJy if it has none.  By default the
        ``*_flux`` columns of an LSST reference catalog are kept as they are.
    ra_column, dec_column, id_column
        Names of columns in tables that are not LSST reference catalogs; without identifiers the rows are
        numbered.
    output_run
        RUN collection, by default ``refcats/NAME``; it is put into the chain ``refcats``.
    replace
        Whether shards give way that the collection has already.
    failures
        Gets the reason for each file that can't be used; without it, the first such file is an error.
    """
    run = output_run or Instrument.makeRefCatCollectionName(name)
    check_run(butler, run)
    dataset_type = _dataset_type(butler, name)
    tables = []
    for file in expand_paths(paths, _SUFFIXES):
        try:
            tables.append(_standardize(_read(file), bands, ra_column, dec_column, id_column))
        except (KeyError, ValueError, u.UnitsError) as err:
            text = f"{display_name(file)}: {err.args[0] if err.args else err}"
            if failures is None:
                raise UserError(text) from None
            failures[display_name(file)] = text
    if not tables and failures:
        raise UserError(next(iter(failures.values())))
    # Different columns in different files would make shards that can't be concatenated.
    if len(columns := {tuple(sorted(table.colnames)) for table in tables}) > 1:
        raise UserError(
            f"the tables have different columns: {' / '.join(', '.join(c) for c in sorted(columns))}"
        )
    catalog = astropy.table.vstack(tables, metadata_conflicts="silent")
    if "id" not in catalog.colnames:
        catalog.add_column(np.arange(1, len(catalog) + 1), name="id", index=0)
    return _put_shards(butler, dataset_type, catalog, run, replace)


def _dataset_type(butler: Butler, name: str) -> DatasetType:
    """Return the catalog's dataset type, unregistered as yet."""
    try:
        dataset_type = DatasetType(name, (f"htm{_LEVEL}",), "ArrowAstropy", universe=butler.dimensions)
    except ValueError as err:
        raise UserError(f"name = {name!r}: {err}") from None
    for registered in butler.registry.queryDatasetTypes(name):
        if registered != dataset_type:
            raise RepositoryError(f"name = {name!r}: the repository has another dataset type {registered}")
    return dataset_type


def _put_shards(
    butler: Butler, dataset_type: DatasetType, catalog: astropy.table.Table, run: str, replace: bool
) -> list[DatasetRef]:
    trixels = _trixels(catalog)
    shards = np.unique(trixels).tolist()
    name = dataset_type.name
    butler.registry.registerDatasetType(dataset_type)
    butler.collections.register(run)
    found = (butler.find_dataset(dataset_type, {"htm7": shard}, collections=run) for shard in shards)
    existing = [ref for ref in found if ref is not None]
    if existing and not replace:
        ids = ", ".join(str(ref.dataId["htm7"]) for ref in existing)
        raise RepositoryError(f"{run} has shards of {name} already ({ids}); give --replace or --output-run")
    if existing:
        butler.pruneDatasets(existing, disassociate=True, unstore=True, purge=True)
    refs = [butler.put(catalog[trixels == shard], dataset_type, htm7=shard, run=run) for shard in shards]
    chain = Instrument.makeRefCatCollectionName()
    butler.collections.register(chain, CollectionType.CHAINED)
    if run not in butler.collections.get_info(chain).children:
        butler.collections.prepend_chain(chain, run)
    logger.info("Ingested %d sources of %s in %d shards into %s.", len(catalog), name, len(refs), run)
    return refs


def _read(file: ResourcePath) -> astropy.table.Table:
    with warnings.catch_warnings(), file.as_local() as local:
        warnings.simplefilter("ignore", u.UnitsWarning)
        try:
            if local.ospath.endswith((".parquet", ".parq")):
                # Astropy would need pandas for it.
                return arrow_to_astropy(pyarrow.parquet.read_table(local.ospath))
            return astropy.table.Table.read(local.ospath, format=_FORMATS.get(file.getExtension(), "fits"))
        except (OSError, ValueError, TypeError) as err:
            raise ValueError(f"not a readable table: {' '.join(str(err).split())}") from None


def _standardize(
    table: astropy.table.Table, bands: Sequence[BandColumns], ra: str, dec: str, identifier: str
) -> astropy.table.Table:
    is_lsst = {"coord_ra", "coord_dec"} <= set(table.colnames)
    if is_lsst:
        ra, dec, identifier = "coord_ra", "coord_dec", "id"
    out = astropy.table.Table()
    if identifier in table.colnames:
        out["id"] = np.asarray(_column(table, identifier), dtype=np.int64)
    for target, source in (("coord_ra", ra), ("coord_dec", dec)):
        values = _plain(_column(table, source))
        out[target] = (values if is_lsst else np.deg2rad(values)) * u.rad
    position = np.stack([out["coord_ra"].value, out["coord_dec"].value])
    if not np.isfinite(position).all() or (np.abs(position[1]) > 0.5 * np.pi).any():
        raise ValueError(f"columns {ra}, {dec} have positions that are not on the sky")
    if not bands and not is_lsst:
        raise ValueError("no band columns were given, and it is no LSST reference catalog")
    for band in bands:
        flux, error = _flux(table, band)
        out[f"{band.band}_flux"] = flux * u.nJy
        if error is not None:
            out[f"{band.band}_fluxErr"] = error * u.nJy
    if not is_lsst:
        _add_motions(out, table)
    for name in table.colnames if is_lsst else ():
        is_flux = not bands and name.endswith(("_flux", "_fluxErr"))
        if (is_flux or _KEPT.fullmatch(name)) and table[name].ndim == 1:
            out[name] = _plain(table[name])
            if is_flux:
                out[name].unit = u.nJy
    return out


def _add_motions(out: astropy.table.Table, table: astropy.table.Table) -> None:
    """Add proper motions, parallaxes and the epoch to a table that has them under Gaia's names."""
    if not {"pmra", "pmdec", "ref_epoch"} <= set(table.colnames):
        return
    years = _plain(table["ref_epoch"])
    out["epoch"] = astropy.time.Time(np.nan_to_num(years, nan=2000.0), format="jyear", scale="tcb").tai.mjd
    for name, source, unit, default in _MOTIONS:
        if source in table.colnames:
            factor = (1.0 * (table[source].unit or default)).to_value(unit)
            values = _plain(table[source])
            # Stars without a solution for their motion stand still, with no error known.
            out[name] = (values if name.endswith("Err") else np.nan_to_num(values)) * factor * unit


def _column(table: astropy.table.Table, name: str) -> astropy.table.Column:
    if name not in table.colnames:
        raise KeyError(f"no column {name!r}; {suggest(name, table.colnames)}")
    return table[name]


def _plain(column: astropy.table.Column) -> np.ndarray:
    """Return a column as floats, with NaN where it is masked."""
    values = np.ma.asarray(column.data if hasattr(column, "data") else column)
    return np.ma.filled(values.astype(np.float64), np.nan)


def _flux(table: astropy.table.Table, band: BandColumns) -> tuple[np.ndarray, np.ndarray | None]:
    column = _column(table, band.value)
    values = _plain(column)
    errors = None if band.error is None else _plain(_column(table, band.error))
    if column.unit in (u.mag, u.ABmag) or (column.unit is None and "mag" in band.value.lower()):
        flux = (values * u.ABmag).to_value(u.nJy)
        return flux, None if errors is None else errors * flux * np.log(10.0) / 2.5
    factor = 1.0 if column.unit is None else float((1.0 * column.unit).to_value(u.nJy))
    return values * factor, None if errors is None else errors * factor


def _trixels(catalog: astropy.table.Table) -> np.ndarray:
    pixelization = HtmPixelization(_LEVEL)
    positions = zip(catalog["coord_ra"].value.tolist(), catalog["coord_dec"].value.tolist(), strict=True)
    return np.array(
        [pixelization.index(UnitVector3d(LonLat.fromRadians(ra, dec))) for ra, dec in positions],
        dtype=np.int64,
    )
