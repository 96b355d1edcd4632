"""Fetch reference stars from the Gaia archive, in the form that ``ingest_refcats`` reads."""

from __future__ import annotations

__all__ = ("GAIA_TAP", "Cone", "check_file", "cover_visits", "fetch_gaia", "write_references")

import contextlib
import dataclasses
import http.client
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from xml.etree.ElementTree import ParseError

import astropy.io.votable
import astropy.table
import astropy.units as u
import numpy as np
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath
from lsst.sphgeom import LonLat, UnitVector3d

from ..errors import UserError
from ..text import translate_errors

GAIA_TAP = "https://gea.esac.esa.int/tap-server/tap"
_TABLE = "gaiadr3.gaia_source"
_ASTROMETRY = (
    *("source_id", "ra", "dec", "ra_error", "dec_error", "ref_epoch", "pmra", "pmdec"),
    *("pmra_error", "pmdec_error", "parallax", "parallax_error"),
)
_AB_ZERO_POINTS = {"g": 25.8010, "bp": 25.3540, "rp": 25.1040}
"""AB magnitudes of one electron a second in Gaia's bands (Riello et al. 2021, A&A 649, A3)."""

_MARGIN = 1.0 / 60.0
"""Degrees by which cones reach beyond visits: stars move, and pointings are off."""

_FORMATS = {".ecsv": "ascii.ecsv", ".fits": "fits", ".vot": "votable"}


@dataclasses.dataclass(frozen=True)
class Cone:
    """A circle on the sky, in degrees, ICRS."""

    ra: float
    dec: float
    radius: float

    def __post_init__(self) -> None:
        sound = 0.0 <= self.ra <= 360.0 and -90.0 <= self.dec <= 90.0 and 0.0 < self.radius <= 90.0
        if not sound:
            raise UserError(
                f"ra = {self.ra:g}, dec = {self.dec:g}, radius = {self.radius:g}: "
                "expected degrees, 0 to 360, -90 to 90, and more than 0 to 90"
            )

    def holds(self, other: Cone) -> bool:
        """Return whether another circle is within this one."""
        points = [UnitVector3d(LonLat.fromDegrees(cone.ra, cone.dec)) for cone in (self, other)]
        distance = math.degrees(math.acos(min(points[0].dot(points[1]), 1.0)))
        return distance + other.radius <= self.radius + 1e-9


def cover_visits(butler: Butler, instrument: str, *, where: str = "") -> list[Cone]:
    """Return circles that cover an instrument's visits, with a margin; ``where`` narrows the visits."""
    with translate_errors(UserError, f"Can't find visits of {instrument}"):
        visits = butler.query_dimension_records(
            "visit", instrument=instrument, where=where, explain=False, limit=None
        )
    cones: list[Cone] = []
    for region in (visit.region for visit in visits if visit.region is not None):
        circle = region.getBoundingCircle()
        center = LonLat(circle.getCenter())
        ra, dec = center.getLon().asDegrees(), center.getLat().asDegrees()
        # Visits of one field point almost to the same place; the second margin is for those.
        cone = Cone(ra, dec, circle.getOpeningAngle().asDegrees() + _MARGIN)
        if not any(other.holds(cone) for other in cones):
            cones.append(dataclasses.replace(cone, radius=cone.radius + _MARGIN))
    if not cones:
        raise UserError(
            f"The repository has no visit of {instrument}{f' with {where!r}' if where else ''}; "
            "define visits first, or give a position and a radius."
        )
    return cones


def fetch_gaia(
    cones: Sequence[Cone], *, max_magnitude: float = 21.0, max_rows: int = 1_000_000, server: str = GAIA_TAP
) -> astropy.table.Table:
    """Return the stars of Gaia's third data release within circles.

    They have the archive's columns on positions, proper motions, parallaxes and epoch; and, for each ``BAND``
    of ``g``, ``bp`` and ``rp``, ``phot_BAND_flux`` and ``phot_BAND_flux_error``, an AB flux in nJy.

    Parameters
    ----------
    max_magnitude
        Faintest magnitude in Gaia's G band.
    max_rows
        Most stars in a circle; more are refused.
    server
        Address of a TAP service that has the table ``gaiadr3.gaia_source``.
    """
    tables = [_query(server, _adql(cone, max_magnitude), max_rows) for cone in cones]
    found = astropy.table.vstack(tables, metadata_conflicts="silent")
    if not len(found):
        raise UserError(f"{server} has no star brighter than G = {max_magnitude:g} there.")
    return _calibrate(astropy.table.unique(found, "source_id"))


def write_references(stars: astropy.table.Table, file: str, *, overwrite: bool = False) -> None:
    """Write stars to a file, whose ending is .ecsv, .fits or .vot."""
    form = check_file(file, overwrite=overwrite)
    with translate_errors(UserError, f"Can't write {file}"):
        target = ResourcePath(file, forceAbsolute=False, forceDirectory=False)
        with ResourcePath.temporary_uri(suffix=target.getExtension()) as temporary:
            stars.write(temporary.ospath, format=form)
            target.transfer_from(temporary, transfer="copy", overwrite=overwrite)


def check_file(file: str, *, overwrite: bool = False) -> str:
    """Return astropy's name of a file's format; raise if its ending is another one, or if it exists."""
    ending = os.path.splitext(file)[1]
    if ending not in _FORMATS:
        raise UserError(f"{file}: expected a name that ends in {', '.join(_FORMATS)}")
    if not overwrite and ResourcePath(file, forceAbsolute=False, forceDirectory=False).exists():
        raise UserError(f"The file {file} exists; give --overwrite to replace it.")
    return _FORMATS[ending]


def _adql(cone: Cone, max_magnitude: float) -> str:
    columns = [*_ASTROMETRY]
    for band in _AB_ZERO_POINTS:
        columns += [f"phot_{band}_mean_flux", f"phot_{band}_mean_flux_error"]
    return (
        f"SELECT {', '.join(columns)} FROM {_TABLE} "
        f"WHERE 1 = CONTAINS(POINT('ICRS', ra, dec), "
        f"CIRCLE('ICRS', {cone.ra:.7f}, {cone.dec:.7f}, {cone.radius:.7f})) "
        f"AND phot_g_mean_mag <= {max_magnitude:g}"
    )


def _query(server: str, adql: str, max_rows: int) -> astropy.table.Table:
    """Run an asynchronous query: a synchronous one of Gaia's archive ends after 2,000 rows."""
    try:
        # Not astroquery.gaia, which asks the archive for news when it is imported.
        from astroquery.utils.tap import TapPlus
    except ImportError:
        raise UserError("Gaia needs astroquery; run `pip install 'spark-butler[gaia]'`.") from None

    with (
        tempfile.TemporaryDirectory() as folder,
        # The client prints errors, too.
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        file = os.path.join(folder, "stars.vot.gz")
        try:
            job = TapPlus(url=server).launch_job_async(adql, maxrec=max_rows, background=True)
            job.outputFileUser = file
            job.save_results()
            answer = astropy.io.votable.parse(file)
        except (OSError, ValueError, ParseError, http.client.HTTPException) as err:
            raise UserError(f"Can't query {server}: {' '.join(str(err).split())}") from None
    (resource, *_) = answer.resources
    status = [info.value for info in resource.infos if info.name == "QUERY_STATUS"]
    if "ERROR" in status:
        raise UserError(f"{server} refused the query: {resource.infos[0].content}")
    table = answer.get_first_table().to_table(use_names_over_ids=True)
    if "OVERFLOW" in status or len(table) >= max_rows:
        raise UserError(
            f"{server} has more than {len(table)} stars there; give a smaller radius, a brighter "
            "--max-magnitude, or more --max-rows."
        )
    return table


def _calibrate(found: astropy.table.Table) -> astropy.table.Table:
    """Replace instrumental fluxes by AB fluxes: the archive's magnitudes are Vega's."""
    stars = found[[*_ASTROMETRY]]
    for band, zero_point in _AB_ZERO_POINTS.items():
        scale = (zero_point * u.ABmag).to_value(u.nJy)
        for name in ("flux", "flux_error"):
            values = np.ma.asarray(found[f"phot_{band}_mean_{name}"], dtype=np.float64)
            stars[f"phot_{band}_{name}"] = astropy.table.Column(
                np.ma.filled(values * scale, np.nan), unit=u.nJy
            )
    return stars
