"""Measure all sources of one visit image, and put them into a table.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("SourceMeasurements", "make_blend_columns", "make_source_table", "measure_sources")

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import astropy.table
import astropy.wcs
import numpy as np
import numpy.typing as npt
import scipy.ndimage
from lsst.images import VisitImage

from .frames import plane_union
from .pixels import BoolArray, FloatArray, Image32, IntArray
from .pixels.measurement import (
    Apertures,
    PsfPhotometry,
    aperture_fluxes,
    isolated_stamps,
    measure_psf_photometry,
    model_radius,
)
from .pixels.psf_model import PsfModel
from .pixels.robust import robust_sigma, weighted_median
from .pixels.stamps import AdaptiveMoments, gather_windows, measure_moments, stamp_offsets
from .source_schema import describe_columns, name_aperture

_SIZE_NOISE = 1.2
"""Relative error of an adaptive size times the signal-to-noise ratio; measured on simulated stars."""

_CORRECTION_SCATTER = 0.003
"""Relative scatter of bright stars' aperture corrections that is not noise."""

_LACKING = 0.01
"""Relative scatter of the light that fitted PSFs lack, if there is no better measurement of it."""

_MOST_FILLED = 0.1
"""Largest share of a star's light on masked pixels, if the aperture correction comes from it."""

_CORRECTION_STARS = (5, 300)
"""Fewest and most stars that the aperture correction comes from, the brightest."""

_PIXEL_FLAGS = {
    "bad": "BAD",
    "cr": "COSMIC_RAY",
    "saturated": "SATURATED",
}


@dataclasses.dataclass(frozen=True)
class SourceMeasurements:
    """Instrumental measurements, in the units of the image, in the order of the positions given."""

    psf: PsfPhotometry
    model: PsfModel
    """The PSF that was fitted."""

    apertures: Apertures
    """Fluxes in the catalog's apertures."""

    moments: AdaptiveMoments
    psf_moments: AdaptiveMoments
    """Moments of the PSF at the sources' positions."""

    correction_radius: float
    """Radius in pixels of the aperture that PSF fluxes are corrected to."""

    aperture_correction: float
    """Factor that PSF fluxes are multiplied by to agree with the correction aperture."""

    aperture_correction_err: float
    n_aperture_correction: int
    footprint: IntArray
    """Number of the footprint, the connected pixels above the threshold, of each; 0 off all of them."""

    sky: FloatArray
    """Background under the PSF flux, in the pixel at the center."""

    extendedness: FloatArray
    """1 for sources wider than the PSF, 0 for others, NaN if unknown."""

    flags: Mapping[str, BoolArray]

    @property
    def inst_flux(self) -> FloatArray:
        """PSF fluxes, aperture corrected."""
        return self.psf.flux * self.aperture_correction

    @property
    def inst_flux_err(self) -> FloatArray:
        """Their errors; that of the aperture correction, which all fluxes share, is not in them."""
        return self.psf.flux_err * self.aperture_correction

    def usable(self, min_snr: float) -> BoolArray:
        """Tell which are unblemished point sources above a signal-to-noise ratio."""
        flags = self.flags
        with np.errstate(invalid="ignore", divide="ignore"):
            bright = self.psf.flux > min_snr * self.psf.noise_err
        spoiled = flags["psfFlux_flag"] | flags["centroid_flag"] | flags["pixelFlags_edge"]
        for name in _PIXEL_FLAGS:
            spoiled = spoiled | flags[f"pixelFlags_{name}Center"]
        spoiled = spoiled | flags["pixelFlags_saturated"]
        return np.asarray(bright & ~spoiled & (self.extendedness == 0.0))


def measure_sources(
    image: VisitImage,
    x: FloatArray,
    y: FloatArray,
    *,
    radii: Sequence[float],
    correction_radius: float = 3.0,
    correction_min_snr: float = 50.0,
) -> SourceMeasurements:
    """Measure everything that needs the pixels of a sky-subtracted image in electrons.

    Parameters
    ----------
    x, y
        Positions of the peaks in pixels.
    radii
        Radii of the catalog's apertures in pixels.
    correction_radius
        Radius, in FWHM of the PSF, of the aperture that PSF fluxes are corrected to.
    correction_min_snr
        Least signal-to-noise ratio of the stars that the correction comes from; of few stars, there is none.
    """
    pixels, variance = image.image.array, image.variance.array
    model = PsfModel.from_psf(image.psf, (pixels.shape[0], pixels.shape[1]))
    sigma = model.sigma
    masked = plane_union(image.mask, "BAD", "COSMIC_RAY", "NO_DATA")
    psf = measure_psf_photometry(pixels, variance, masked, x, y, model)
    radius = max(model_radius(model), math.ceil(max(radii, default=0.0)) + 1)
    stamps, ix, iy, dx, dy = isolated_stamps(psf.residual, psf.x, psf.y, psf.flux, model, radius, psf.reach)
    hidden = masked | plane_union(image.mask, "SATURATED")
    apertures = aperture_fluxes(
        stamps,
        gather_windows(variance.astype(np.float64), ix, iy, radius, fill=0.0),
        gather_windows(hidden, ix, iy, radius, fill=True),
        dx,
        dy,
        radii,
    )
    margin = radius - model_radius(model)
    inner = slice(margin, stamps.shape[1] - margin)
    sky = gather_windows(psf.sky, ix, iy, radius, fill=np.float32(0.0))
    moments = measure_moments((stamps - sky)[:, inner, inner], dx, dy, sigma)
    expected = measure_moments(model.stamps(psf.x, psf.y, ix, iy, model_radius(model)), dx, dy, sigma)
    measured = SourceMeasurements(
        psf=psf,
        model=model,
        apertures=apertures,
        moments=moments,
        psf_moments=expected,
        correction_radius=correction_radius * model.fwhm,
        aperture_correction=1.0,
        aperture_correction_err=math.nan,
        n_aperture_correction=0,
        footprint=np.asarray(scipy.ndimage.label(image.mask.get("DETECTED"), np.ones((3, 3)))[0])[iy, ix],
        sky=psf.sky[iy, ix].astype(np.float64),
        extendedness=_classify(moments, expected, psf),
        flags=_make_flags(image, psf, ix, iy, sigma),
    )
    stars = np.nonzero(measured.usable(correction_min_snr) & (psf.blendedness < 0.02))[0]
    stars = stars[np.argsort(-psf.flux[stars], kind="stable")][: _CORRECTION_STARS[1]]
    return _with_correction(measured, stars, variance, hidden)


def _with_correction(
    measured: SourceMeasurements, stars: IntArray, variance: Image32, hidden: BoolArray
) -> SourceMeasurements:
    """Return the measurements with the aperture correction of stars, above the light around their apertures.

    That light is of sources too faint to be subtracted: in crowded fields more than the sky's mode has.
    """
    psf, rim = measured.psf, measured.correction_radius
    radius = math.ceil(1.5 * rim) + 1
    star = psf.x[stars], psf.y[stars], psf.flux[stars]
    stamps, ix, iy, dx, dy = isolated_stamps(psf.residual, *star, measured.model, radius, psf.reach[stars])
    bad = gather_windows(hidden, ix, iy, radius, fill=True)
    offsets = stamp_offsets(radius)
    step = np.abs(offsets)
    # Beyond its square the star's own wings are still there.
    beyond = np.maximum(step[:, None], step[None, :])[None] > psf.reach[stars][:, None, None]
    own = star[2][:, None, None] * measured.model.stamps(*star[:2], ix, iy, radius)
    around = gather_windows(psf.residual, ix, iy, radius, fill=np.float32(0.0)) - np.where(beyond, own, 0.0)
    distance = np.hypot(offsets[:, None], offsets[None, :])
    sector = np.floor(4.0 * np.arctan2(offsets[:, None], offsets[None, :]) / math.pi + 1e-9)
    ring = (distance > rim) & (distance < 1.5 * rim)
    # The median over sectors of the mean, which counts faint sources but no bright one.
    parts = [ring & (sector == k) & ~bad for k in range(-4, 4)]
    count = np.stack([part.sum(axis=(1, 2)) for part in parts])
    light = np.stack([np.where(part, around, 0.0).sum(axis=(1, 2)) for part in parts])
    level = np.median(light / np.maximum(count, 1), axis=0)
    noise = gather_windows(variance.astype(np.float64), ix, iy, radius, fill=0.0)
    # A masked pixel gets the light of the model: among dead pixels hardly a star would be whole.
    filled = np.where(bad, own, stamps - level[:, None, None])
    aperture = aperture_fluxes(filled, noise, bad, dx, dy, [rim])
    enclosed = measured.model.enclosed(*star[:2], rim) * star[2]
    hidden_light = aperture_fluxes(np.where(bad, own, 0.0), noise, bad, dx, dy, [rim]).flux[:, 0]
    whole = hidden_light < _MOST_FILLED * enclosed
    if np.count_nonzero(whole) < _CORRECTION_STARS[0]:
        return measured
    ratio, error = ((a[:, 0] / enclosed)[whole] for a in (aperture.flux, aperture.flux_err))
    weight = 1.0 / np.hypot(error, _CORRECTION_SCATTER)
    middle = weighted_median(ratio, weight)
    # Of each star, in units of its expected error; then of the median.
    spread = robust_sigma((ratio - middle) * weight)
    median_error = spread * math.sqrt(0.5 * math.pi / float((weight**2).sum()))
    known = 1.0 / (1.0 + (median_error / _LACKING) ** 2)
    return dataclasses.replace(
        measured,
        aperture_correction=1.0 + known * (middle - 1.0),
        aperture_correction_err=math.sqrt(known) * median_error,
        n_aperture_correction=int(ratio.size),
    )


def _make_flags(
    image: VisitImage, psf: PsfPhotometry, ix: IntArray, iy: IntArray, sigma: float
) -> dict[str, BoolArray]:
    flags: dict[str, BoolArray] = {"centroid_flag": ~psf.centroid_ok, "psfFlux_flag": ~psf.flux_ok}
    radius = math.ceil(2.0 * sigma)
    core = slice(radius - 1, radius + 2)
    for name, plane in _PIXEL_FLAGS.items():
        windows = gather_windows(image.mask.get(plane), ix, iy, radius, fill=False)
        flags[f"pixelFlags_{name}"] = windows.any(axis=(1, 2))
        flags[f"pixelFlags_{name}Center"] = windows[:, core, core].any(axis=(1, 2))
    flags["pixelFlags_nodata"] = gather_windows(image.mask.get("NO_DATA"), ix, iy, radius, fill=True).any(
        axis=(1, 2)
    )
    flags["pixelFlags_edge"] = image.mask.get("DETECTION_EDGE")[iy, ix]
    return flags


def _classify(moments: AdaptiveMoments, expected: AdaptiveMoments, psf: PsfPhotometry) -> FloatArray:
    """Call a source extended if its size exceeds the PSF's there by three times its error and a tenth."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = _SIZE_NOISE * np.abs(psf.noise_err / psf.flux)
        excess = moments.sigma / expected.sigma - 1.0
    extended = np.where(excess > np.maximum(3.0 * error, 0.1), 1.0, 0.0)
    return np.where(psf.flux_ok & (psf.flux > 0.0) & np.isfinite(error), extended, np.nan)


def make_source_table(
    measured: SourceMeasurements,
    *,
    ids: npt.NDArray[np.int64],
    wcs: astropy.wcs.WCS,
    njy_per_electron: float,
    radii: Sequence[float],
    extra: Mapping[str, Any],
) -> astropy.table.Table:
    """Put measurements into a table, one row per source, with a unit and a description of every column.

    Parameters
    ----------
    njy_per_electron
        Calibration; NaN if there is none, which makes the calibrated fluxes NaN.
    radii
        Radii of the apertures in pixels, for the columns' names.
    extra
        More columns: a value for all rows, or an array.
    """
    psf, moments, expected = measured.psf, measured.moments, measured.psf_moments
    ra, dec = wcs.pixel_to_world_values(psf.x, psf.y)
    # Errors of centroids, as they are on the sky.
    jacobian, pixel_variance = wcs.pixel_scale_matrix, np.stack([psf.x_err**2, psf.y_err**2])
    ra_err, dec_err = np.sqrt(jacobian**2 @ pixel_variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = psf.flux / psf.pixel_err
    columns: dict[str, Any] = {
        "sourceId": ids,
        **make_blend_columns(measured.footprint, ids),
        **{"x": psf.x, "y": psf.y, "xErr": psf.x_err, "yErr": psf.y_err},
        **{"coord_ra": ra, "coord_dec": dec, "ra": ra, "dec": dec, "raErr": ra_err, "decErr": dec_err},
        "ra_dec_Cov": (jacobian[0] * jacobian[1]) @ pixel_variance,
        "psfFlux": measured.inst_flux * njy_per_electron,
        "psfFluxErr": measured.inst_flux_err * njy_per_electron,
        "instFlux": measured.inst_flux,
        "instFluxErr": measured.inst_flux_err,
        "psfFlux_apCorr": np.full(len(ids), measured.aperture_correction),
        "psfFlux_apCorrErr": np.full(len(ids), measured.aperture_correction_err),
        "snr": snr,
        "sky": measured.sky * njy_per_electron,
    }
    for index, radius in enumerate(radii):
        calibrated, instrumental = name_aperture(radius)
        flux, error = measured.apertures.flux[:, index], measured.apertures.flux_err[:, index]
        columns[calibrated] = flux * njy_per_electron
        columns[f"{calibrated}Err"] = error * njy_per_electron
        columns[f"{calibrated}_flag"] = measured.apertures.truncated[:, index]
        columns[f"{instrumental}_instFlux"] = flux
        columns[f"{instrumental}_instFluxErr"] = error
    for name in ("ixx", "iyy", "ixy"):
        columns[name] = np.where(moments.ok, getattr(moments, name), np.nan)
        columns[f"{name}PSF"] = getattr(expected, name)
    columns |= {
        "shape_flag": ~moments.ok,
        "sizeExtendedness": measured.extendedness,
        "blendedness": psf.blendedness,
        **measured.flags,
        **extra,
    }
    table = astropy.table.Table()
    for name, value in columns.items():
        table[name] = value
    describe_columns(table, radii)
    return table


def make_blend_columns(footprint: IntArray, ids: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return ``parentSourceId`` and ``deblend_nChild``.

    Footprints have numbers; 0 is off all of them.  The numbers after the identifiers of the sources are free.
    """
    _, inverse, members = np.unique(footprint, return_inverse=True, return_counts=True)
    blended = (members[inverse] > 1) & (footprint > 0)
    parents = np.zeros(len(ids), dtype=np.int64)
    if blended.any():
        parents[blended] = ids.max() + 1 + np.unique(footprint[blended], return_inverse=True)[1]
    return {"parentSourceId": parents, "deblend_nChild": np.zeros(len(ids), dtype=np.int32)}
