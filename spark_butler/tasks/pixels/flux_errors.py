"""Errors of PSF fluxes and positions beyond the variance of the pixels: from blends, misfits and the sky.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "BlankSky",
    "blend_factors",
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

_BLANK_PLACES = 2000
"""Places between the sources where the noise of a PSF flux is measured."""

_BRIGHT_SHARE, _FEWEST_BRIGHT = 100.0, 8
"""Least mean square of a star's light, in units of the variance, and fewest stars, to measure the misfit."""

_NEAR_PLACES = 200
"""Number of these places nearest to a source from which the noise there is measured."""


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
    px, py = (rng.integers(radius, size - radius, 4 * _BLANK_PLACES) for size in (nx, ny))
    if len(x):
        apart = scipy.spatial.cKDTree(np.column_stack([x, y])).query(np.column_stack([px, py]))[0]
        # In a crowded field, take the emptiest places.
        chosen = np.argsort(-np.minimum(apart, 1.5 * psf.fwhm), kind="stable")
        px, py = px[chosen], py[chosen]
    px, py = px[:_BLANK_PLACES], py[:_BLANK_PLACES]
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
