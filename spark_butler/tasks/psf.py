"""Estimate a Gaussian PSF from the bright, isolated stars of an image."""

from __future__ import annotations

__all__ = ("FWHM_PER_SIGMA", "PsfEstimate", "estimate_psf", "fit_profile", "psf_stamp_size")

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.spatial

from .detection import Detections
from .moments import measure_moments, windowed_centroids
from .stamps import PsfProfile, gather_windows, stamp_offsets

FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian of unit standard deviation."""


@dataclasses.dataclass(frozen=True)
class PsfEstimate:
    """A circular Gaussian PSF and the stars behind it."""

    sigma: float
    """Standard deviation in pixels; NaN if there were too few stars."""

    ixx: float
    iyy: float
    ixy: float
    """Median second moments of the stars in pixels squared."""

    scatter: float
    """Robust standard deviation of the stars' sizes, as a fraction of ``sigma``."""

    stars: npt.NDArray[np.intp]
    """Indices of the detections that were used."""


def psf_stamp_size(sigma: float) -> int:
    """Side of the square that holds the PSF out to five standard deviations, an odd number."""
    return 2 * math.ceil(5.0 * sigma) + 1


def estimate_psf(
    image: npt.NDArray[np.floating[Any]],
    masked: npt.NDArray[np.bool_],
    detections: Detections,
    sigma: float,
    *,
    min_significance: float = 30.0,
    max_stars: int = 150,
    min_stars: int = 3,
    isolation: float = 6.0,
) -> PsfEstimate:
    """Measure the PSF's width.

    Parameters
    ----------
    image
        Sky-subtracted image, shape ``(ny, nx)``.
    masked
        Pixels that must not lie in a star's core: defects, cosmic rays, saturation.
    detections
        What was found with a filter of width ``sigma``.
    sigma
        First guess of the PSF's standard deviation in pixels.
    min_significance
        Least significance of a star that is used.
    max_stars
        The brightest so many candidates are measured.
    min_stars
        With fewer the estimate is NaN.
    isolation
        A candidate has no neighbor of more than a tenth of its significance within this many ``sigma``.
    """
    radius = math.ceil(5.0 * sigma)
    chosen = _select_candidates(masked, detections, sigma, min_significance, isolation, radius)[:max_stars]
    nothing = PsfEstimate(math.nan, math.nan, math.nan, math.nan, math.nan, chosen[:0])
    if len(chosen) < min_stars:
        return nothing
    ix, iy = np.rint(detections.x[chosen]).astype(np.intp), np.rint(detections.y[chosen]).astype(np.intp)
    stamps = gather_windows(np.where(np.isfinite(image) & ~masked, image, 0.0), ix, iy, radius, fill=0.0)
    dx, dy, centered = windowed_centroids(stamps, detections.x[chosen] - ix, detections.y[chosen] - iy, sigma)
    moments = measure_moments(stamps, dx, dy, sigma)
    sizes = moments.sigma
    usable = centered & moments.ok
    if np.count_nonzero(usable) < min_stars:
        return nothing
    on_locus = usable & _stellar_locus(sizes, usable)
    if np.count_nonzero(on_locus) < min_stars:
        return nothing
    width = float(np.median(sizes[on_locus]))
    return PsfEstimate(
        sigma=width,
        ixx=float(np.median(moments.ixx[on_locus])),
        iyy=float(np.median(moments.iyy[on_locus])),
        ixy=float(np.median(moments.ixy[on_locus])),
        scatter=float(1.4826 * np.median(np.abs(sizes[on_locus] - width)) / width),
        stars=chosen[on_locus],
    )


def fit_profile(
    stamps: npt.NDArray[np.float64],
    dx: npt.NDArray[np.float64],
    dy: npt.NDArray[np.float64],
    flux: npt.NDArray[np.float64],
    sigma: float,
) -> PsfProfile:
    """Fit a core and a wing to the median radial profile of stars.

    A single Gaussian leaves out the wings, a fifth of the light in ordinary seeing: what neighbors add to a
    source then depends on the seeing.

    Parameters
    ----------
    stamps
        Cut-outs of stars with their neighbors subtracted, shape ``(n, size, size)``; they should reach out
        to six ``sigma``.
    dx, dy
        Centers relative to the central pixel of each stamp.
    flux
        Approximate fluxes.
    sigma
        Standard deviation of the Gaussian that is most like the PSF, in pixels.
    """
    offsets = stamp_offsets(stamps.shape[1] // 2)
    distance = np.hypot(
        offsets[None, None, :] - dx[:, None, None], offsets[None, :, None] - dy[:, None, None]
    )
    scaled = stamps / flux[:, None, None]
    edges = np.arange(0.0, 6.0, 0.35) * sigma
    which = np.digitize(distance, edges) - 1
    radii, values, weights = [], [], []
    for index in range(len(edges) - 1):
        inside = which == index
        if np.count_nonzero(inside) >= 5:
            radii.append(float(np.median(distance[inside])))
            values.append(float(np.median(scaled[inside])))
            weights.append(math.sqrt(np.count_nonzero(inside)))
    radius, value, weight = (np.array(numbers) for numbers in (radii, values, weights))

    def model(parameters: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        amplitude, fraction, core, wing = parameters
        profile = PsfProfile(((1.0 - fraction, core * sigma), (fraction, wing * sigma)), sigma)
        return np.asarray(amplitude * profile(radius))

    fit = scipy.optimize.least_squares(
        lambda parameters: weight * (model(parameters) - value),
        x0=[1.0, 0.2, 0.95, 2.0],
        bounds=([0.5, 0.0, 0.6, 1.2], [2.0, 0.6, 1.1, 3.5]),
        x_scale=[0.1, 0.1, 0.05, 0.5],
    )
    if not fit.success:
        return PsfProfile.gaussian(sigma)
    _, fraction, core, wing = (float(number) for number in fit.x)
    return PsfProfile(((1.0 - fraction, core * sigma), (fraction, wing * sigma)), sigma)


def _select_candidates(
    masked: npt.NDArray[np.bool_],
    detections: Detections,
    sigma: float,
    min_significance: float,
    isolation: float,
    radius: int,
) -> npt.NDArray[np.intp]:
    ny, nx = masked.shape
    bright = np.nonzero(detections.significance >= min_significance)[0]
    x, y = detections.x[bright], detections.y[bright]
    inside = (x >= radius) & (y >= radius) & (x < nx - radius) & (y < ny - radius)
    bright, x, y = bright[inside], x[inside], y[inside]
    core = math.ceil(2.5 * sigma)
    windows = gather_windows(masked, np.rint(x).astype(np.intp), np.rint(y).astype(np.intp), core, fill=False)
    bright = bright[~windows.any(axis=(1, 2))]
    if not bright.size:
        return np.asarray(bright)
    tree = scipy.spatial.cKDTree(np.column_stack([detections.x, detections.y]))
    neighbors = tree.query_ball_point(
        np.column_stack([detections.x[bright], detections.y[bright]]), isolation * sigma
    )
    alone = [
        all(
            other == index or detections.significance[other] < 0.1 * detections.significance[index]
            for other in near
        )
        for index, near in zip(bright, neighbors, strict=True)
    ]
    return np.asarray(bright[np.array(alone, dtype=bool)])


def _stellar_locus(sizes: npt.NDArray[np.float64], usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Clip around the mode of the sizes, which is the stars'; the mean is that of stars and galaxies."""
    center = _half_sample_mode(np.sort(sizes[usable]))
    on_locus = usable & (np.abs(sizes - center) < 0.1 * center)
    for _ in range(5):
        center = float(np.median(sizes[on_locus]))
        spread = 1.4826 * float(np.median(np.abs(sizes[on_locus] - center)))
        on_locus = usable & (np.abs(sizes - center) < 3.0 * max(spread, 0.01 * center))
    return on_locus


def _half_sample_mode(values: npt.NDArray[np.float64]) -> float:
    """Mode of sorted values (Bickel & Frühwirth 2006, CSDA 50, 3500)."""
    while values.size > 3:
        half = (values.size + 1) // 2
        start = int(np.argmin(values[half - 1 :] - values[: values.size - half + 1]))
        values = values[start : start + half]
    return float(np.median(values))
