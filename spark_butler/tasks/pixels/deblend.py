"""Search for sources that brighter neighbors hide, in the image minus all fitted PSFs.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("Deblended", "find_hidden")

import dataclasses
import math

import numpy as np
import scipy.spatial

from . import BoolArray, FloatArray, FloatImage, Image32, IntArray
from .detection import Detections, detect_sources
from .measurement import PsfPhotometry, isolated_stamps, measure_psf_photometry, model_radius
from .psf_model import PsfModel
from .robust import robust_sigma
from .stamps import gather_windows, measure_moments, nearest_pixel, windowed_centroids

_MODEL_ERROR = (0.03, 0.1)
"""Least and largest error of a subtracted PSF as a fraction of its light in each pixel."""

_FEWEST_PIXELS = 100
"""Fewest bright pixels of PSF stars from which the error of the PSF is measured."""

_GALAXY = 1.1
"""Width, in units of the PSF's, above which sources are not deblended."""


@dataclasses.dataclass(frozen=True)
class Deblended:
    """All sources of an image, and the image without them."""

    detections: Detections
    """The sources, without those centered off the image."""

    origin: IntArray
    """Index of each source among the given detections; -1 for one that was hidden."""

    residual: FloatImage
    """The image minus all PSFs; zero where masked."""

    bright: BoolArray
    """Pixels whose residual comes from a bright source, not from the sky."""

    stars: FloatArray
    """Cut-outs of the requested stars, with all other sources subtracted."""


def find_hidden(  # noqa: PLR0913
    image: FloatImage,
    variance: FloatImage,
    masked: BoolArray,
    detections: Detections,
    psf: PsfModel,
    *,
    stars: IntArray,
    stamp_radius: int,
    certain: int,
    threshold: float = 5.0,
) -> Deblended:
    """Find the sources that appear after all fitted PSFs are subtracted, and subtract them, too.

    Parameters
    ----------
    masked
        Pixels that carry no information on fluxes: defects, cosmic rays, saturation.
    stars, stamp_radius
        Indices of the detections that are to be cut out, and the half size of the cut-outs.
    certain
        Number of detections, counted from the first, that are kept even with an insignificant flux.
    threshold
        Least signal-to-noise ratio, with the light of the neighbors as noise.
    """
    origin = np.arange(len(detections))
    fit = measure_psf_photometry(image, variance, masked, detections.x, detections.y, psf, passes=1)
    off_image = _off_image(fit.x, fit.y, image.shape)
    residual = np.asarray(fit.residual - fit.sky, dtype=np.float32)
    error = _model_error(fit, variance, masked, psf, stars)
    light = _neighbor_light(image, fit, masked, error)
    total = variance + light**2
    found = _center(
        detect_sources(residual, total, total, masked, psf.sigma, threshold=threshold), residual, psf
    )
    core = gather_windows(masked, *nearest_pixel(fit.x, fit.y, image.shape), 1)
    # The fit to a star with a masked core is poor, and a streak is not a star.
    whole = ~core.any(axis=(1, 2)) & ~detections.streak
    new = ~_near_known(found, fit, psf, off_image, whole)
    # Residuals of sources off the image, whose centers are unknown, are not sources.
    new &= ~_off_image(found.x, found.y, image.shape, 2.0 * psf.sigma)
    keep = _significant(fit, origin, certain, psf)
    if new.any():
        detections = _join(detections, keep, found, new)
        origin = np.append(origin[keep], np.full(np.count_nonzero(new), -1))
        fit = measure_psf_photometry(image, variance, masked, detections.x, detections.y, psf, passes=1)
        keep, light = _significant(fit, origin, certain, psf), _neighbor_light(image, fit, masked, error)
    keep &= ~_off_image(fit.x, fit.y, image.shape)
    index = np.nonzero(np.isin(origin, stars) & keep)[0]
    place = fit.x[index], fit.y[index], fit.flux[index]
    cut, *_ = isolated_stamps(fit.residual - fit.sky, *place, psf, stamp_radius, fit.reach[index])
    return Deblended(
        detections=_join(detections, keep, found, np.zeros(len(found), dtype=bool)),
        origin=origin[keep],
        residual=fit.residual,
        bright=light > 0.5 * math.sqrt(float(np.median(variance))),
        stars=cut,
    )


def _center(found: Detections, residual: FloatImage, psf: PsfModel) -> Detections:
    """Move peaks to the centroids of their light, and merge those that meet there.

    The error of subtracted neighbors counts as noise, so that peaks are found where it ends.
    """
    if not len(found):
        return found
    ix, iy = nearest_pixel(found.x, found.y, residual.shape)
    stamps = gather_windows(residual, ix, iy, model_radius(psf), fill=0.0)
    dx, dy, _ = windowed_centroids(stamps, found.x - ix, found.y - iy, psf.sigma, reach=psf.fwhm)
    x, y = ix + dx, iy + dy
    # Of a pair, the first one is more significant, and stays.
    pairs = scipy.spatial.cKDTree(np.column_stack([x, y])).query_pairs(psf.sigma, output_type="ndarray")
    single = np.ones(len(found), dtype=bool)
    single[pairs.max(axis=1)] = False
    columns = {name: getattr(found, name)[single] for name in ("significance", "streak")}
    return Detections(x=x[single], y=y[single], footprint=found.footprint, **columns)


def _significant(fit: PsfPhotometry, origin: IntArray, certain: int, psf: PsfModel) -> BoolArray:
    """Return which sources have a significant flux; certain ones need it only beside a brighter one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.nan_to_num(fit.flux / fit.flux_err, nan=np.inf)
    redundant = np.zeros(len(origin), dtype=bool)
    if len(origin) > 1:
        places = np.column_stack([fit.x, fit.y])
        pairs = scipy.spatial.cKDTree(places).query_pairs(psf.fwhm, output_type="ndarray")
        fainter = np.where(fit.flux[pairs[:, 0]] < fit.flux[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        # One star whose core is partly masked has two peaks.
        redundant[fainter] = ratio[fainter] < 2.0
    known = (origin >= 0) & (origin < certain)
    return np.asarray(np.where(known, ~redundant, ratio > 3.0))


def _model_error(
    fit: PsfPhotometry, variance: FloatImage, masked: BoolArray, psf: PsfModel, stars: IntArray
) -> float:
    """Return twice the typical error of the PSF in bright pixels of its stars, as a fraction of its light."""
    radius = math.ceil(psf.fwhm)
    ix, iy = nearest_pixel(fit.x[stars], fit.y[stars], variance.shape)
    light = fit.flux[stars, None, None] * psf.stamps(fit.x[stars], fit.y[stars], ix, iy, radius)
    used = ~gather_windows(masked, ix, iy, radius, fill=True)
    noise = gather_windows(variance, ix, iy, radius)
    used &= (light > 0.0) & (noise < (_MODEL_ERROR[0] * light) ** 2)
    if np.count_nonzero(used) < _FEWEST_PIXELS:
        return _MODEL_ERROR[1]
    residual = gather_windows(fit.residual - fit.sky, ix, iy, radius)
    square = robust_sigma((residual / light)[used]) ** 2 - np.median((noise / light**2)[used])
    return float(np.clip(2.0 * math.sqrt(max(square, 0.0)), *_MODEL_ERROR))


def _neighbor_light(image: FloatImage, fit: PsfPhotometry, masked: BoolArray, error: float) -> Image32:
    """Return the error that the subtraction of the sources leaves in each pixel."""
    light = np.maximum(image - fit.residual, np.float32(0.0)) * np.float32(error)
    return np.where(masked, np.float32(0.0), light)


def _near_known(
    found: Detections, fit: PsfPhotometry, psf: PsfModel, off_image: BoolArray, whole: BoolArray
) -> BoolArray:
    """Return which peaks belong to a known source: too close to it, or within an extended one."""
    if not len(found):
        return np.zeros(0, dtype=bool)
    radius = 2 * model_radius(psf)
    tree = scipy.spatial.cKDTree(np.column_stack([found.x, found.y]))
    places = np.column_stack([fit.x, fit.y])
    beside = np.nonzero(tree.query(places)[0] <= 1.5 * radius)[0]
    stamps, *_, dx, dy = isolated_stamps(
        *(fit.residual - fit.sky, fit.x[beside], fit.y[beside], fit.flux[beside], psf, radius),
        fit.reach[beside],
    )
    moments = measure_moments(stamps, dx, dy, psf.sigma)
    with np.errstate(invalid="ignore", divide="ignore"):
        certain = (fit.flux > 10.0 * fit.noise_err)[beside]
    extended = ~moments.ok | (certain & (moments.sigma > _GALAXY * psf.sigma))
    reach = np.where(extended | ~whole[beside], 4.0 * np.maximum(moments.sigma, psf.sigma), 1.5 * psf.sigma)
    reach = np.where(off_image[beside], 6.0 * psf.sigma, reach)
    reach = np.clip(np.nan_to_num(reach, nan=4.0 * psf.sigma), 0.0, 1.5 * radius)
    near = np.zeros(len(found), dtype=bool)
    for group in tree.query_ball_point(places[beside], reach):
        near[group] = True
    return near


def _off_image(x: FloatArray, y: FloatArray, shape: tuple[int, ...], margin: float = 0.0) -> BoolArray:
    """Return which positions lie off the image or within a margin of its edge."""
    inside = (np.minimum(x, y) > margin - 0.5) & (x < shape[1] - 0.5 - margin) & (y < shape[0] - 0.5 - margin)
    return np.asarray(~inside)


def _join(known: Detections, keep: BoolArray, found: Detections, new: BoolArray) -> Detections:
    """Return the chosen known and found detections, the known ones first."""
    columns = {
        name: np.concatenate([getattr(known, name)[keep], getattr(found, name)[new]])
        for name in ("x", "y", "significance", "streak")
    }
    return Detections(footprint=known.footprint | found.footprint, **columns)
