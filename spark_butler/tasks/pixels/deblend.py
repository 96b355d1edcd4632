"""Find sources that brighter neighbors hide, in what is left once those are subtracted.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("Deblended", "find_hidden")

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.spatial

from .detection import Detections, detect_sources
from .measurement import PsfPhotometry, isolated_stamps, measure_psf_photometry, model_radius
from .psf_model import PsfModel
from .stamps import measure_moments

type BoolArray = npt.NDArray[np.bool_]
type Image32 = npt.NDArray[np.floating[Any]]

_MODEL_ERROR = 0.1
"""Error of a subtracted PSF as a fraction of its light in each pixel."""


@dataclasses.dataclass(frozen=True)
class Deblended:
    """All sources of an image, and the image without them."""

    detections: Detections
    """The sources; what is centered off the image is left out."""

    origin: npt.NDArray[np.intp]
    """Index of each among the detections given, -1 for those that were hidden."""

    residual: Image32
    """The image minus all PSFs; zero where masked."""

    bright: BoolArray
    """Pixels where the residual is that of a bright source, not of the sky."""

    stars: npt.NDArray[np.float64]
    """Cut-outs of the stars that were asked for, with all other sources subtracted."""


def find_hidden(  # noqa: PLR0913
    image: Image32,
    variance: Image32,
    masked: BoolArray,
    detections: Detections,
    psf: PsfModel,
    *,
    stars: npt.NDArray[np.intp],
    stamp_radius: int,
    certain: int,
    threshold: float = 5.0,
) -> Deblended:
    """Find the sources that show once all fitted PSFs are subtracted, and subtract them, too.

    Parameters
    ----------
    image
        Sky-subtracted image in electrons.
    variance
        Full variance of its pixels.
    masked
        Pixels that carry no information on fluxes: defects, cosmic rays, saturation.
    detections
        What was found on the image.
    psf
        The PSF.
    stars
        Indices of the detections that are to be cut out.
    stamp_radius
        Half size of the cut-outs.
    certain
        So many of the detections, from the first on, are kept whatever their fluxes.
    threshold
        Least signal-to-noise ratio, with the light of the neighbors as noise.
    """
    origin = np.arange(len(detections))
    fit = measure_psf_photometry(image, variance, masked, detections.x, detections.y, psf, passes=1)
    off_image = _off_image(fit.x, fit.y, image.shape)
    residual = np.asarray(fit.residual - fit.sky, dtype=np.float32)
    light = _neighbor_light(image, fit, masked)
    total = variance + light**2
    found = detect_sources(residual, total, total, masked, psf.sigma, threshold=threshold)
    new = ~_near_known(found, fit, psf, off_image)
    # What is left of sources off the image, whose centers are not known, is no source.
    new &= ~_off_image(found.x, found.y, image.shape, 2.0 * psf.sigma)
    keep = _significant(fit, origin, certain, psf)
    if new.any():
        detections = _join(detections, keep, found, new)
        origin = np.append(origin[keep], np.full(np.count_nonzero(new), -1))
        fit = measure_psf_photometry(image, variance, masked, detections.x, detections.y, psf, passes=1)
        keep, light = _significant(fit, origin, certain, psf), _neighbor_light(image, fit, masked)
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


def _significant(fit: PsfPhotometry, origin: npt.NDArray[np.intp], certain: int, psf: PsfModel) -> BoolArray:
    """Return which sources have a flux of their own: certain ones, unless a brighter one is beside them."""
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


def _neighbor_light(image: Image32, fit: PsfPhotometry, masked: BoolArray) -> npt.NDArray[np.float32]:
    """Return the error that the subtraction of the sources leaves in each pixel."""
    light = np.maximum(image - fit.residual, np.float32(0.0)) * np.float32(_MODEL_ERROR)
    return np.where(masked, np.float32(0.0), light)


def _near_known(found: Detections, fit: PsfPhotometry, psf: PsfModel, off_image: BoolArray) -> BoolArray:
    """Return which peaks are part of a source that is known: too near, or within an extended one."""
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
        extended = (moments.sigma > 1.1 * psf.sigma) & (fit.flux > 10.0 * fit.noise_err)[beside]
    reach = np.where(extended | ~moments.ok, 4.0 * np.maximum(moments.sigma, psf.sigma), 1.5 * psf.sigma)
    reach = np.where(off_image[beside], 6.0 * psf.sigma, reach)
    reach = np.clip(np.nan_to_num(reach, nan=4.0 * psf.sigma), 0.0, 1.5 * radius)
    near = np.zeros(len(found), dtype=bool)
    for group in tree.query_ball_point(places[beside], reach):
        near[group] = True
    return near


def _off_image(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], shape: tuple[int, ...], margin: float = 0.0
) -> BoolArray:
    """Return which positions lie off the image or within a margin of its edge."""
    inside = (np.minimum(x, y) > margin - 0.5) & (x < shape[1] - 0.5 - margin) & (y < shape[0] - 0.5 - margin)
    return np.asarray(~inside)


def _join(known: Detections, keep: BoolArray, found: Detections, new: BoolArray) -> Detections:
    """Return the chosen ones of both, the known ones first."""
    columns = {
        name: np.concatenate([getattr(known, name)[keep], getattr(found, name)[new]])
        for name in ("x", "y", "significance", "streak")
    }
    return Detections(footprint=known.footprint | found.footprint, **columns)
