"""Select bright, isolated stars and estimate the width of their images.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("PsfEstimate", "estimate_psf")

import dataclasses
import math

import numpy as np
import scipy.spatial

from . import BoolArray, FloatArray, FloatImage, IntArray
from .detection import Detections
from .robust import half_sample_mode, robust_sigma
from .stamps import gather_windows, measure_moments, windowed_centroids

_ISOLATION = 6.0
"""Distance in sigma within which a candidate has no neighbor of more than a tenth of its significance."""


@dataclasses.dataclass(frozen=True)
class PsfEstimate:
    """The typical width of stars, and the detections that may be stars."""

    sigma: float
    """Standard deviation in pixels of the Gaussian that is most like them; NaN if there were too few."""

    candidates: IntArray
    """Indices of the detections that are bright, isolated and not much wider or narrower than that."""


def estimate_psf(
    image: FloatImage,
    masked: BoolArray,
    detections: Detections,
    sigma: float,
    *,
    min_significance: float = 30.0,
    max_stars: int = 150,
    min_stars: int = 3,
) -> PsfEstimate:
    """Measure the PSF's width.

    Parameters
    ----------
    image
        Sky-subtracted image, shape ``(ny, nx)``.
    masked
        Pixels that must not lie in a star's core: defects, cosmic rays, saturation.
    detections, sigma
        What was found with a filter of the width ``sigma``, the first guess of the PSF's standard deviation.
    min_significance
        Least significance of a star that is used.
    max_stars, min_stars
        The brightest so many candidates are measured; with fewer than ``min_stars`` the estimate is NaN.
    """
    radius = math.ceil(5.0 * sigma)
    chosen = _select_candidates(masked, detections, sigma, min_significance, radius)[:max_stars]
    nothing = PsfEstimate(math.nan, chosen[:0])
    if len(chosen) < min_stars:
        return nothing
    ix, iy = np.rint(detections.x[chosen]).astype(np.intp), np.rint(detections.y[chosen]).astype(np.intp)
    stamps = gather_windows(np.where(np.isfinite(image) & ~masked, image, 0.0), ix, iy, radius, fill=0.0)
    dx, dy, centerd = windowed_centroids(stamps, detections.x[chosen] - ix, detections.y[chosen] - iy, sigma)
    moments = measure_moments(stamps, dx, dy, sigma)
    sizes = moments.sigma
    usable = centerd & moments.ok
    if np.count_nonzero(usable) < min_stars:
        return nothing
    on_locus = usable & _stellar_locus(sizes, usable)
    if np.count_nonzero(on_locus) < min_stars:
        return nothing
    width = float(np.median(sizes[on_locus]))
    # Room for a PSF that varies; what does not follow the stars is left out when the PSF is fitted.
    similar = usable & (np.abs(np.log(sizes / width)) < 0.5)
    return PsfEstimate(width, chosen[similar])


def _select_candidates(
    masked: BoolArray, detections: Detections, sigma: float, min_significance: float, radius: int
) -> IntArray:
    ny, nx = masked.shape
    bright = np.nonzero((detections.significance >= min_significance) & ~detections.streak)[0]
    x, y = detections.x[bright], detections.y[bright]
    inside = (x >= radius) & (y >= radius) & (x < nx - radius) & (y < ny - radius)
    bright, x, y = bright[inside], x[inside], y[inside]
    core = math.ceil(2.5 * sigma)
    windows = gather_windows(masked, np.rint(x).astype(np.intp), np.rint(y).astype(np.intp), core, fill=False)
    center = windows[:, core - 1 : core + 2, core - 1 : core + 2]
    # A few bad pixels in the outskirts do no harm: the fit leaves them out.
    bright = bright[~center.any(axis=(1, 2)) & (windows.mean(axis=(1, 2)) < 0.1)]
    if not bright.size:
        return np.asarray(bright)
    tree = scipy.spatial.cKDTree(np.column_stack([detections.x, detections.y]))
    others = scipy.spatial.cKDTree(np.column_stack([detections.x[bright], detections.y[bright]]))
    pairs = others.sparse_distance_matrix(tree, _ISOLATION * sigma, output_type="coo_matrix")
    rival = (pairs.col != bright[pairs.row]) & (
        detections.significance[pairs.col] >= 0.1 * detections.significance[bright[pairs.row]]
    )
    alone = np.ones(bright.size, dtype=bool)
    alone[pairs.row[rival]] = False
    return np.asarray(bright[alone])


def _stellar_locus(sizes: FloatArray, usable: BoolArray) -> BoolArray:
    """Clip around the mode of the sizes, which is the stars'; the mean is that of stars and galaxies."""
    center = half_sample_mode(np.sort(sizes[usable]))
    on_locus = usable & (np.abs(sizes - center) < 0.1 * center)
    for _ in range(5):
        center = float(np.median(sizes[on_locus]))
        spread = robust_sigma(sizes[on_locus] - center)
        on_locus = usable & (np.abs(sizes - center) < 3.0 * max(spread, 0.01 * center))
    return on_locus
