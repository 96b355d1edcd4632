"""Data for the science page, of images and catalogs.  Runs in the command's process, or in a kernel."""

from __future__ import annotations

__all__ = ["MAX_CATALOGS", "ScienceSummary", "StarTable", "make_stars", "read_science"]

import dataclasses

import astropy.units as u
import numpy as np
import numpy.typing as npt
from astropy.table import Table, vstack
from lsst.daf.butler import Butler, DatasetRef

from ..errors import RepositoryError
from ..obs.camera.description import CameraDescription
from ..obs.repository import get_description
from ..repository.query import find_data_ids
from ..text import translate_errors
from .pictures import to_focal_plane

type FloatArray = npt.NDArray[np.float64]

MAX_CATALOGS = 400
"""Greatest number of catalogs that are read; of a larger number, a regular subset is read."""

_COLUMNS = (
    *("x", "y", "snr", "ixx", "iyy", "ixy", "ixxPSF", "iyyPSF", "ixyPSF", "psfFlux", "refFlux"),
    *("refOffset_ra", "refOffset_dec", "calib_psf_used", "calib_photometry_used", "image_flag"),
)


@dataclasses.dataclass(frozen=True)
class StarTable:
    """Stars of all images; each array has one element per star."""

    x: FloatArray
    """Position in the focal plane in pixels."""
    y: FloatArray
    is_psf_star: npt.NDArray[np.bool_]
    """Whether the star was used to fit the PSF."""
    ellipticity: npt.NDArray[np.complex128]
    """Ellipticity of the PSF, (Ixx - Iyy + 2i Ixy) / (Ixx + Iyy), in the axes of the focal plane."""
    ellipticity_residual: npt.NDArray[np.complex128]
    """Ellipticity of the star minus that of the PSF."""
    size_residual: FloatArray
    """Ixx + Iyy of the star minus that of the PSF, divided by that of the PSF."""
    offset_ra: FloatArray
    """Position of the star minus that of the reference, in milliarcseconds; NaN without a match."""
    offset_dec: FloatArray
    flux_residual: FloatArray
    """AB magnitude of the star minus that of the reference, in millimagnitudes; NaN without a match."""
    magnitude: FloatArray
    """AB magnitude of the reference; NaN without a match."""
    is_calibrator: npt.NDArray[np.bool_]
    """Whether the star was used to fit the zero point."""


@dataclasses.dataclass(frozen=True)
class ScienceSummary:
    """Data of one instrument for the science page."""

    instrument: str
    camera: CameraDescription
    images: Table
    """The rows of all ``visit_summary`` tables."""
    stars: StarTable
    n_catalogs: int
    """Number of catalogs that the stars were read from."""


def read_science(butler: Butler, collection: str, *, where: str = "") -> list[ScienceSummary]:
    """Read summaries and stars of an output of process_ccd, for each instrument by name."""
    found = find_data_ids(butler, "visit_summary", collections=(collection,), where=where)
    catalogs = find_data_ids(butler, "source", collections=(collection,), where=where)
    by_instrument: dict[str, list[DatasetRef]] = {}
    for ref in found.refs:
        by_instrument.setdefault(str(ref.dataId["instrument"]), []).append(ref)
    with translate_errors(RepositoryError, f"Can't read the tables of {collection}"):
        return [
            _read_instrument(
                butler,
                name,
                refs,
                [ref for ref in catalogs.refs if ref.dataId["instrument"] == name],
            )
            for name, refs in sorted(by_instrument.items())
        ]


def _read_instrument(
    butler: Butler, name: str, summaries: list[DatasetRef], catalogs: list[DatasetRef]
) -> ScienceSummary:
    camera = get_description(butler, name)
    chosen = sorted(catalogs, key=lambda ref: (ref.dataId["visit"], ref.dataId["detector"]))
    chosen = chosen[:: -(-len(chosen) // MAX_CATALOGS)]
    selected = {(int(ref.dataId["visit"]), int(ref.dataId["detector"])) for ref in catalogs}

    def read(ref: DatasetRef) -> StarTable:
        table = butler.get(ref)
        if missing := [column for column in _COLUMNS if column not in table.colnames]:
            raise RepositoryError(
                f"The catalog {ref} has no column {', '.join(missing)}; an earlier release wrote it. "
                "Run process_ccd again, into a new output run."
            )
        return make_stars(table, camera, int(ref.dataId["detector"]))

    # Not in parallel: threads that share the file cache of a butler interfere with each other.
    images = vstack([butler.get(ref) for ref in summaries], metadata_conflicts="silent")
    stars = [read(ref) for ref in chosen]
    rows = [(int(row["visit"]), int(row["detector"])) in selected for row in images]
    columns = [field.name for field in dataclasses.fields(StarTable)]
    joined = {column: np.concatenate([getattr(each, column) for each in stars]) for column in columns}
    return ScienceSummary(name, camera, images[rows], StarTable(**joined), len(chosen))


def make_stars(table: Table, camera: CameraDescription, detector: int) -> StarTable:
    """Return the PSF stars and the matched sources of one catalog."""
    columns = {name: np.asarray(table[name]) for name in _COLUMNS}
    kept = (columns["calib_psf_used"] | np.isfinite(columns["refFlux"])) & (columns["snr"] > 0.0)
    values = {name: column[kept] for name, column in columns.items()}
    described = camera.get_detector(detector)
    place = to_focal_plane(described).transform(np.column_stack([values["x"], values["y"]]))
    # An ellipticity turns by twice the angle of the axes (spin 2).
    turned = np.exp(2j * np.radians(described.rotation))
    size, ellipticity = _shape(values["ixx"], values["iyy"], values["ixy"])
    psf_size, psf_ellipticity = _shape(values["ixxPSF"], values["iyyPSF"], values["ixyPSF"])
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = -2.5 * np.log10(values["psfFlux"] / values["refFlux"])
        magnitude = (values["refFlux"] * u.nJy).to_value(u.ABmag)
    return StarTable(
        x=np.asarray(place[:, 0]),
        y=np.asarray(place[:, 1]),
        is_psf_star=values["calib_psf_used"],
        ellipticity=psf_ellipticity * turned,
        ellipticity_residual=(ellipticity - psf_ellipticity) * turned,
        size_residual=size / psf_size - 1.0,
        offset_ra=1000.0 * values["refOffset_ra"],
        offset_dec=1000.0 * values["refOffset_dec"],
        flux_residual=1000.0 * residual,
        magnitude=magnitude,
        is_calibrator=values["calib_photometry_used"],
    )


def _shape(
    ixx: FloatArray, iyy: FloatArray, ixy: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.complex128]]:
    """Return Ixx + Iyy, and the ellipticity (Ixx - Iyy + 2i Ixy) / (Ixx + Iyy)."""
    size = ixx + iyy
    return size, (ixx - iyy) / size + 1j * (2.0 * ixy / size)
