"""Errors of PSF fluxes and positions beyond those from pixels: blends, misfits, the sky, hidden companions.

Runs in workers.  Hidden companions are fainter stars, too close to a star to be detected beside it.
"""

from __future__ import annotations

__all__ = (
    "BlankSky",
    "blend_factors",
    "companion_errors",
    "measure_blank_sky",
    "misfit_factors",
    "number_pixels",
    "source_pixels",
)

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.sparse
import scipy.spatial

from . import BoolArray, FloatArray, FloatImage, IntArray
from .psf_model import PsfModel
from .robust import MAD_TO_SIGMA
from .stamps import gather_windows, nearest_pixel, stamp_offsets

_BLENDED = 3.0
"""Distance in FWHM up to which sources are fitted as one blend."""

_MEMBERS = 7
"""Most sources of a blend, the one itself included, whose errors depend on one another."""

_STEP = 0.02
"""Pixels of a shift that a PSF's slope is measured by."""

_PLACES, _NEAR_PLACES = 2000, 200
"""Number of random places on the image where noise, or the light of companions, is measured, and of those
around a source from which its error is computed."""

_BRIGHT_SHARE, _FEWEST_BRIGHT = 100.0, 8
"""Least mean square of a star's light, in units of the variance, and fewest stars, to measure the misfit."""

_APART = 1.5
"""Distance in FWHM beyond which a companion adds hardly any light to a fitted flux."""

_SEEN = 5.0
"""Signal-to-noise ratio above which a source is detected."""

_MODEL_ERROR = 0.03
"""Error of a subtracted PSF, as a fraction of its light in each pixel."""

_COMPANION = 0.1
"""Largest flux of a companion, in units of its star's flux; a brighter one makes the star a blend."""

_OUTLIER = 2.0
"""Largest deviation that counts in full, in units of the other errors."""

_LEVELS = 24
"""Number of star fluxes for which the light of companions is summed; each star takes the nearest one."""


def source_pixels(ix: IntArray, iy: IntArray, good: BoolArray, radius: int) -> tuple[IntArray, BoolArray]:
    """Return the flat index of each pixel of the sources' squares, and which of them lie on good pixels."""
    ny, nx = good.shape
    step = stamp_offsets(radius).astype(np.intp)
    columns, rows = ix[:, None, None] + step[None, None, :], iy[:, None, None] + step[None, :, None]
    inside = (columns >= 0) & (columns < nx) & (rows >= 0) & (rows < ny)
    pixel = np.where(inside, rows * nx + columns, 0)
    return pixel, inside & good.ravel()[pixel]


def number_pixels(pixel: IntArray, size: int) -> tuple[IntArray, IntArray]:
    """Return the flat indices that occur in an image of ``size`` pixels, and which of those each one is."""
    occurs = np.zeros(size, dtype=bool)
    occurs[pixel] = True
    used = np.flatnonzero(occurs)
    number = np.empty(size, dtype=np.int32)
    number[used] = np.arange(used.size, dtype=np.int32)
    return used, number[pixel].astype(np.intp)


def blend_factors(
    x: FloatArray, y: FloatArray, flux: FloatArray, variance: FloatImage, good: BoolArray, psf: PsfModel
) -> FloatArray:
    """Return by what the neighbors multiply the errors of flux, x and y; shape ``(3, n)``.

    Fluxes and positions of a source and its neighbors are determined together: the less they are apart, the
    less well.
    """
    factors = np.ones((3, len(x)))
    if len(x) < 2:
        return factors
    places = np.column_stack([x, y])
    count = min(len(x), _MEMBERS)
    distance, index = scipy.spatial.cKDTree(places).query(
        places, k=count, distance_upper_bound=_BLENDED * psf.fwhm
    )
    blended = np.nonzero(np.isfinite(distance[:, 1]))[0]
    if not blended.size:
        return factors
    number = np.full(len(x) + 1, -1)
    number[blended] = np.arange(blended.size)
    # Neighbors of one source beyond the nearest few are not missed.
    near = number[index[blended]]
    near[~np.isfinite(distance[blended])] = -1
    normal, noise = _normal_matrices(x[blended], y[blended], variance, good, psf)
    normal_blocks, noise_blocks = (_blocks(matrix, near) for matrix in (normal, noise))
    diagonal, spread = normal.diagonal().reshape(-1, 3), noise.diagonal().reshape(-1, 3)
    pixel_noise = spread / np.maximum(diagonal, 1e-300)
    # A position is known to a width of the PSF from the peak, whatever the fit says.
    known = pixel_noise[:, 1:] / np.maximum(np.abs(flux[blended]) * psf.sigma, 1e-300)[:, None] ** 2
    prior = np.zeros((blended.size + 1, 3))
    prior[:-1, 1:] = known
    prior_noise = np.zeros_like(prior)
    prior_noise[:-1, 1:] = known * pixel_noise[:, 1:]
    size = 3 * count
    trace = np.arange(size)
    normal_blocks[:, trace, trace] += prior[near].reshape(-1, size) + 1e-9 * normal_blocks[:, trace, trace]
    noise_blocks[:, trace, trace] += prior_noise[near].reshape(-1, size)
    scale = np.sqrt(normal_blocks[:, trace, trace])
    inverse = np.linalg.inv(normal_blocks / (scale[:, :, None] * scale[:, None, :]) + 1e-7 * np.eye(size))
    noise_blocks /= scale[:, :, None] * scale[:, None, :]
    # The first member of a blend is the source itself.
    own = inverse[:, :3]
    together = np.einsum("nki,nij,nkj->nk", own, noise_blocks, own, optimize=True) / scale[:, :3] ** 2
    alone = spread / np.maximum(diagonal, 1e-300) ** 2
    ratio = together / np.maximum(alone, 1e-300)
    factors[:, blended] = np.sqrt(np.clip(np.nan_to_num(ratio, nan=1.0), 1.0, None)).T
    return factors


def _normal_matrices(
    x: FloatArray, y: FloatArray, variance: FloatImage, good: BoolArray, psf: PsfModel
) -> tuple[Any, Any]:
    """Return the normal matrix of flux and shifts of each source, and the noise's; three columns each."""
    radius = max(math.ceil(1.5 * psf.fwhm), 3)
    ix, iy = nearest_pixel(x, y, good.shape)
    pixel, used = source_pixels(ix, iy, good, radius)
    model = psf.stamps(x, y, ix, iy, radius)
    slopes = [(psf.stamps(x + dx, y + dy, ix, iy, radius) - model) / _STEP for dx, dy in _SHIFTS]
    values = np.concatenate([column[used] for column in (model, *slopes)])
    source = np.broadcast_to(3 * np.arange(len(x))[:, None, None], used.shape)[used]
    columns = np.concatenate([source, source + 1, source + 2])
    places, row = number_pixels(pixel[used], good.size)
    rows = np.tile(row, 3)
    shape = (places.size, 3 * len(x))
    design = scipy.sparse.csr_array((values, (rows, columns)), shape=shape)
    error = np.sqrt(np.maximum(variance.ravel()[places], 0.0))[rows]
    noisy = scipy.sparse.csr_array((values * error, (rows, columns)), shape=shape)
    return (design.T @ design).tocsr(), (noisy.T @ noisy).tocsr()


_SHIFTS = ((_STEP, 0.0), (0.0, _STEP))


def _blocks(matrix: Any, near: IntArray) -> FloatArray:
    """Return the part of a matrix for each blend; places without a source stand alone."""
    count = near.shape[1]
    there = near >= 0
    index = (3 * np.where(there, near, 0)[:, :, None] + np.arange(3)).reshape(len(near), 3 * count)
    size = 3 * count
    rows, columns = np.repeat(index, size, axis=1).ravel(), np.tile(index, (1, size)).ravel()
    block = np.asarray(matrix[rows, columns]).reshape(-1, size, size)
    used = np.repeat(there, 3, axis=1)
    block = np.where(used[:, :, None] & used[:, None, :], block, 0.0)
    return np.asarray(block + np.where(used, 0.0, 1.0)[:, :, None] * np.eye(size))


@dataclasses.dataclass(frozen=True)
class BlankSky:
    """Noise between the sources, compared with that expected from the variance of the pixels."""

    places: FloatArray
    """Positions in pixels, shape ``(n, 2)``."""

    pull: FloatArray
    """PSF flux of nothing, in units of its expected error."""

    misfit: FloatArray
    """Mean square of the residual, weighted by the PSF, in units of the variance."""

    def around(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the relative excess of the variance of fluxes, and the misfit, around positions."""
        if len(self.pull) < 100 or not len(x):
            return np.zeros(len(x)), np.ones(len(x))
        tree = scipy.spatial.cKDTree(self.places)
        near = tree.query(np.column_stack([x, y]), k=min(_NEAR_PLACES, len(self.pull)))[1]
        pull = self.pull[near]
        spread = MAD_TO_SIGMA * np.median(np.abs(pull - np.median(pull, axis=1)[:, None]), axis=1)
        return np.maximum(spread**2 - 1.0, -0.5), np.median(self.misfit[near], axis=1)


def measure_blank_sky(
    sky_residual: FloatImage,
    variance: FloatImage,
    good: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: PsfModel,
) -> BlankSky:
    """Measure the noise of PSF fluxes where there is no source, in the image without sky and sources.

    Sources too faint to be found, errors of the sky, and noise that neighboring pixels share add to what the
    variance of the pixels says.
    """
    radius = max(math.ceil(1.5 * psf.fwhm), 3)
    ny, nx = good.shape
    if min(ny, nx) < 4 * radius:
        return BlankSky(np.zeros((0, 2)), np.zeros(0), np.zeros(0))
    # The seed is fixed, so that an image that is measured again has the same errors.
    rng = np.random.default_rng(1)
    px, py = (rng.integers(radius, size - radius, 4 * _PLACES) for size in (nx, ny))
    if len(x):
        apart = scipy.spatial.cKDTree(np.column_stack([x, y])).query(np.column_stack([px, py]))[0]
        # In a crowded field, take the emptiest places.
        chosen = np.argsort(-np.minimum(apart, 1.5 * psf.fwhm), kind="stable")
        px, py = px[chosen], py[chosen]
    px, py = px[:_PLACES], py[:_PLACES]
    fx, fy = px.astype(np.float64), py.astype(np.float64)
    used = gather_windows(good, px, py, radius)
    model = np.where(used, psf.stamps(fx, fy, px, py, radius), 0.0)
    power = (model**2).sum(axis=(1, 2))
    noise = (model**2 * gather_windows(variance, px, py, radius)).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        pull = (model * gather_windows(sky_residual, px, py, radius)).sum(axis=(1, 2)) / np.sqrt(noise)
    kept = (power > 0.8 * np.median(power)) & np.isfinite(pull)
    misfit, _, _ = _misfit(sky_residual, variance, good, fx[kept], fy[kept], psf)
    return BlankSky(np.column_stack([fx, fy])[kept], pull[kept], misfit)


def misfit_factors(
    sky_residual: FloatImage,
    variance: FloatImage,
    good: BoolArray,
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    psf: PsfModel,
    typical: FloatArray,
) -> FloatArray:
    """Return by what errors grow where the residual exceeds the noise (Stetson 1987, PASP 99, 191).

    What the PSF lacks shows in all bright stars, and is in the aperture correction: only an excess counts,
    over that and over the typical misfit of the sky around a source.
    """
    found, scatter, power = _misfit(sky_residual, variance, good, x, y, psf)
    relative = found / np.maximum(typical, 1.0)
    share = flux**2 * power
    bright = share > _BRIGHT_SHARE
    if np.count_nonzero(bright) >= _FEWEST_BRIGHT:
        lacking = max(float(np.median((relative[bright] - 1.0) / share[bright])), 0.0)
        relative = relative / (1.0 + lacking * share)
    # Noise alone gives twice the scatter of so many pixels.
    return np.asarray(np.where(relative > 1.0 + 2.0 * scatter, np.sqrt(np.maximum(relative, 1.0)), 1.0))


def _misfit(
    sky_residual: FloatImage,
    variance: FloatImage,
    good: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: PsfModel,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the mean square of the residual in units of the variance, its scatter, and a unit flux's."""
    ix, iy = nearest_pixel(x, y, good.shape)
    radius = max(math.ceil(psf.fwhm), 2)
    used = gather_windows(good, ix, iy, radius, fill=False)
    weight = np.where(used, psf.stamps(x, y, ix, iy, radius), 0.0)
    noise = np.maximum(gather_windows(variance, ix, iy, radius, fill=1.0), 1e-6)
    square = gather_windows(sky_residual, ix, iy, radius, fill=0.0) ** 2 / noise
    total = np.maximum(weight.sum(axis=(1, 2)), 1e-12)
    found = (weight * square).sum(axis=(1, 2)) / total
    power = (weight**3 / noise).sum(axis=(1, 2)) / total
    return found, np.sqrt(2.0 * (weight**2).sum(axis=(1, 2))) / total, power


def companion_errors(
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    pixel_err: FloatArray,
    other_err: FloatArray,
    psf: PsfModel,
) -> FloatArray:
    """Return the errors of fluxes from fainter stars that are too close to be detected.

    By chance, as many sources lie behind a star as around a random position.  At each position, the function
    adds up the light of the sources that a star there would hide.  The error is the scatter of these sums
    among the positions around a star.  Few stars have a bright companion, but the error is to describe most
    stars; therefore large deviations are clipped.

    ``pixel_err`` comes from the noise of the pixels alone, ``other_err`` from all causes but companions.
    """
    seen = np.flatnonzero(flux > _SEEN * pixel_err)
    if seen.size < 2:
        return np.zeros(len(x))
    # The seed is fixed, so that an image that is measured again has the same errors.
    places = np.random.default_rng(1).uniform(0.0, 1.0, (_PLACES, 2)) * np.array(psf.shape[::-1]) - 0.5
    tree = scipy.spatial.cKDTree(np.column_stack([x, y])[seen])
    place_tree = scipy.spatial.cKDTree(places)
    pairs = place_tree.sparse_distance_matrix(tree, _APART * psf.fwhm, output_type="coo_matrix")
    source = seen[pairs.col]
    square = (pairs.data / psf.sigma) ** 2
    overlap = np.exp(-0.25 * square)
    added = flux[source] * overlap
    # Light of a Gaussian companion that remains after flux and position of the star are fitted to it.
    left = flux[source] * np.sqrt(np.maximum(1.0 - overlap**2 * (1.0 + 0.5 * square), 0.0))
    order = seen[np.argsort(flux[seen])]
    levels = np.geomspace(flux[order[0]], flux[order[-1]], _LEVELS)
    # Flux error of a Gaussian whose pixels have independent relative errors.
    model_err = 0.4 * _MODEL_ERROR / psf.sigma * levels
    floor = np.hypot(np.interp(levels, flux[order], pixel_err[order]), model_err)
    light = np.zeros((_LEVELS, _PLACES))
    for k in range(_LEVELS):
        hidden = (flux[source] < _COMPANION * levels[k]) & (left < _SEEN * floor[k])
        light[k] = np.bincount(pairs.row[hidden], weights=added[hidden], minlength=_PLACES)
    near = place_tree.query(np.column_stack([x, y]), k=_NEAR_PLACES)[1]
    level = np.abs(np.log(np.maximum(flux, levels[0]))[:, None] - np.log(levels)).argmin(axis=1)
    shift = light[level[:, None], near]
    shift = np.abs(shift - np.median(shift, axis=1)[:, None])
    return np.asarray(np.sqrt((np.minimum(shift, _OUTLIER * other_err[:, None]) ** 2).mean(axis=1)))
