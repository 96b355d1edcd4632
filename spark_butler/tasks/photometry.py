"""The zero point of an image, from the fluxes of matched references.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "AB_ZERO_NJY",
    "Losses",
    "ZeroPoint",
    "fit_zero_point",
    "make_match_columns",
    "measure_losses",
    "measure_trend",
)

import dataclasses
import math
from typing import Any, NamedTuple

import astropy.table
import astropy.time
import astropy.units as u
import astropy.wcs
import numpy as np
from astropy.coordinates import SkyCoord

from .astrometry import AstrometrySolution, no_indices
from .pixels import BoolArray, FloatArray, IntArray
from .pixels.psf_model import polynomial_terms
from .pixels.robust import fit_linear, robust_sigma, weighted_median

AB_ZERO_NJY = 31.4
"""AB magnitude of one nanojansky (Oke & Gunn 1983; 3631 Jy at magnitude zero, rounded as Rubin does)."""

_CLIP, _PASSES = 3.0, 5
"""Limit of the clipping in standard deviations, and the most passes."""

_FEWEST_FOR_TREND = 20

_REFERENCE_SCATTER = 0.01
"""Scatter in magnitudes between good references and a detector; it limits the weight of single stars."""


class Losses(NamedTuple):
    """Shares of their light that stars lack, apart from a share that they all lack."""

    stars: IntArray
    """Indices of the sources."""

    lost: FloatArray
    error: FloatArray


@dataclasses.dataclass(frozen=True)
class ZeroPoint:
    """Magnitude of a source with a flux of one instrumental unit, and the stars that determine it."""

    magnitude: float = math.nan
    """AB magnitude; NaN if there were too few stars."""

    error: float = math.nan
    """Standard error of the magnitude."""

    scatter: float = math.nan
    """Robust standard deviation of single stars in magnitudes: of the reserved ones, if there are any."""

    offset: float = math.nan
    """Median difference of the reserved stars' calibrated magnitudes from those of their references."""

    trend: float = math.nan
    """Change of the zero point over the image in magnitudes, as from `measure_trend`."""

    losses: Losses | None = None
    """Light that each star lacks relative to its reference, as from `measure_losses`."""

    used: IntArray = dataclasses.field(default_factory=no_indices)
    """Indices of the stars that the zero point was fitted to, without clipped ones."""

    reserved: IntArray = dataclasses.field(default_factory=no_indices)
    """Indices of the stars that were left out of the fit."""

    @property
    def njy_per_count(self) -> float:
        """Nanojanskys per instrumental unit."""
        return float(10.0 ** (-0.4 * (self.magnitude - AB_ZERO_NJY)))


def fit_zero_point(
    inst_flux: FloatArray,
    inst_flux_err: FloatArray,
    reference_njy: FloatArray,
    *,
    reserved: BoolArray | None = None,
    min_stars: int = 3,
) -> ZeroPoint:
    """Return the sigma-clipped weighted median of the stars' zero points.

    Parameters
    ----------
    inst_flux, inst_flux_err, reference_njy
        Instrumental fluxes and errors of stars, and their reference fluxes in nanojanskys.
    reserved
        Stars to leave out of the fit, which is then judged by them; by default, by the stars of the fit.
    min_stars
        Least number of good stars; with fewer the result is NaN.
    """
    each, weight, good = _single_zero_points(inst_flux, inst_flux_err, reference_njy)
    held = good & reserved if reserved is not None else np.zeros(len(each), dtype=bool)
    index, spare = np.nonzero(good & ~held)[0], np.nonzero(held)[0]
    center = spread = math.nan
    for _ in range(_PASSES):
        if index.size < min_stars:
            return ZeroPoint()
        center = weighted_median(each[index], weight[index])
        # In units of each star's expected error.
        spread = robust_sigma((each[index] - center) * weight[index])
        limit = _CLIP * np.maximum(spread / weight[index], 1e-3)
        kept = index[np.abs(each[index] - center) <= limit]
        if kept.size == index.size:
            break
        index = kept
    # The median of Gaussian numbers has a variance larger than the mean's by pi / 2.
    error = spread * math.sqrt(0.5 * math.pi / float((weight[index] ** 2).sum()))
    scatter = robust_sigma(each[spare if spare.size else index] - center)
    offset = float(np.median(center - each[spare])) if spare.size else math.nan
    return ZeroPoint(center, error, scatter, offset, used=index, reserved=spare)


def _single_zero_points(
    inst_flux: FloatArray, inst_flux_err: FloatArray, reference_njy: FloatArray
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return the zero point of each star, its inverse error, and whether both are known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        each = AB_ZERO_NJY - 2.5 * np.log10(reference_njy) + 2.5 * np.log10(inst_flux)
        weight = 1.0 / np.hypot(2.5 / math.log(10.0) * inst_flux_err / inst_flux, _REFERENCE_SCATTER)
    good = np.isfinite(each) & np.isfinite(inst_flux_err) & (inst_flux > 0.0) & (reference_njy > 0.0)
    return each, weight, good


def measure_trend(
    positions: FloatArray,
    inst_flux: FloatArray,
    inst_flux_err: FloatArray,
    reference_njy: FloatArray,
    shape: tuple[int, ...],
) -> float:
    """Return the change of the zero point over the image in magnitudes; 0 if insignificant.

    It is the range, without the outer tenth, of a quadratic surface at the stars; NaN for few stars.

    Parameters
    ----------
    positions
        Columns and rows of the stars, shape ``(n, 2)``.
    inst_flux, inst_flux_err, reference_njy
        Their fluxes, as for `fit_zero_point`.
    shape
        Rows and columns of the image.
    """
    each, weight, good = _single_zero_points(inst_flux, inst_flux_err, reference_njy)
    if np.count_nonzero(good) < _FEWEST_FOR_TREND:
        return math.nan
    each, weight = each[good], weight[good]
    terms = polynomial_terms(positions[good, 0] / shape[1], positions[good, 1] / shape[0], 2)
    surface = terms @ fit_linear(terms, each, 1.0 / weight, scatter=0.0)
    spread = robust_sigma((each - surface) * weight)
    # Noise alone gives one on the average, and more than five once in 7,000 images.
    power = (weight * (surface - np.average(surface, weights=weight**2))) ** 2
    explained = float(power.sum()) / (terms.shape[1] - 1) / max(spread, 1.0) ** 2
    return float(np.ptp(np.percentile(surface, (5.0, 95.0)))) if explained > 5.0 else 0.0


def measure_losses(
    sources: IntArray, inst_flux: FloatArray, inst_flux_err: FloatArray, reference_njy: FloatArray
) -> Losses:
    """Return the shares of light that stars lack relative to their references, apart from a common share.

    Parameters
    ----------
    sources
        Indices of the stars.
    inst_flux, inst_flux_err, reference_njy
        Their fluxes, as for `fit_zero_point`.
    """
    each, _, good = _single_zero_points(inst_flux, inst_flux_err, reference_njy)
    each = each[good]
    lost = 1.0 - 10.0 ** (0.4 * (each - np.median(each))) if each.size else each
    return Losses(sources[good], lost, inst_flux_err[good] / inst_flux[good])


def make_match_columns(
    x: FloatArray,
    y: FloatArray,
    astrometry: AstrometrySolution,
    references: astropy.table.Table | None,
    zero_point: ZeroPoint,
) -> dict[str, Any]:
    """Return the catalog's columns on matched references, and on the use of the matches.

    They are ``refId``; ``refFlux`` [nJy]; ``refOffset_ra`` and ``refOffset_dec`` [arcsec], the source less
    its reference, on the sky; and ``calib_X_used`` and ``calib_X_reserved`` of astrometry and photometry.
    Sources without a match have -1 and NaN.

    Parameters
    ----------
    x, y
        Centroids of the sources in pixels.
    references
        Catalog, as from `load_references`.
    astrometry, zero_point
        Projection, matches, and zero point, with the indices of their sources.
    """
    count = len(x)
    reference_id = np.full(count, -1, dtype=np.int64)
    along_ra, along_dec, flux = (np.full(count, np.nan) for _ in range(3))
    if references is not None and astrometry.sources.size:
        matched, partners = astrometry.sources, references[astrometry.references]
        reference_id[matched] = np.asarray(partners["id"], dtype=np.int64)
        flux[matched] = np.asarray(partners["flux"])
        expected = SkyCoord(partners["ra"], partners["dec"], unit=u.deg)
        seen = SkyCoord(*astrometry.wcs.pixel_to_world_values(x[matched], y[matched]), unit=u.deg)
        for column, offset in zip((along_ra, along_dec), expected.spherical_offsets_to(seen), strict=True):
            column[matched] = offset.to_value(u.arcsec)
    return {
        "refId": reference_id,
        "refFlux": flux,
        "refOffset_ra": along_ra,
        "refOffset_dec": along_dec,
        "calib_astrometry_used": _flagged(astrometry.fitted, count),
        "calib_astrometry_reserved": _flagged(astrometry.reserved, count),
        "calib_photometry_used": _flagged(zero_point.used, count),
        "calib_photometry_reserved": _flagged(zero_point.reserved, count),
    }


def _flagged(index: IntArray, count: int) -> BoolArray:
    flags = np.zeros(count, dtype=bool)
    flags[index] = True
    return flags
