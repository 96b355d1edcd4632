"""Detection of cosmic rays and defects.

Runs in workers.  Cosmic rays are found by Laplacian edge detection (L.A.Cosmic: van Dokkum 2001, PASP 113,
1420).  The maps that the paper computes for every pixel are computed here only where the Laplacian is
significant, which is a few per cent of an image: the result is the same, the cost a fraction.
"""

from __future__ import annotations

__all__ = (
    "find_cosmic_rays",
    "find_defects",
    "star_contrast",
)

import itertools
import math

import numpy as np
import scipy.ndimage

from . import BoolArray, FloatImage, Image32, IntArray
from .psf_model import moffat_stamps
from .robust import MAD_TO_SIGMA
from .stamps import gather_windows

_STRIP = 128
"""Rows that are worked on at a time, so that they stay in the processor's cache."""


def find_cosmic_rays(
    image: FloatImage,
    read_noise: FloatImage | float,
    *,
    ignore: BoolArray | None = None,
    threshold: float = 4.5,
    neighbor_fraction: float = 0.3,
    contrast: float = 5.0,
    iterations: int = 2,
) -> BoolArray:
    """Flag pixels hit by cosmic rays in a single exposure.

    Parameters
    ----------
    image
        Image in electrons, sky not subtracted, shape ``(ny, nx)``.
    read_noise
        Read noise in electrons, per pixel or one number.
    ignore
        Pixels that are never cosmic rays, such as saturated or bad ones.
    threshold
        Significance of the Laplacian, in units of the noise, above which a pixel is a cosmic ray.
    neighbor_fraction
        Pixels touching a cosmic ray are flagged above this fraction of ``threshold``.
    contrast
        Least ratio of the Laplacian to the fine structure image; raise it when the PSF is poorly sampled.
    iterations
        Number of passes; each finds what the previous ones' rays had hidden.

    Returns
    -------
    cosmic_rays
        `True` where a cosmic ray was found, same shape as ``image``.
    """
    clean = np.array(image, dtype=np.float32)
    usable = np.isfinite(clean)
    if ignore is not None:
        usable &= ~ignore
    clean[~np.isfinite(clean)] = 0.0
    if 0.0 < (~usable).mean() < 0.2:
        # Beside a dead pixel, every pixel would be a peak.
        _fill_with_neighbors(clean, ~usable, ~usable)
    noise_floor = np.broadcast_to(np.asarray(read_noise, dtype=np.float32) ** 2, clean.shape)
    found = np.zeros(clean.shape, dtype=bool)
    for _ in range(iterations):
        new = _one_pass(clean, noise_floor, usable, threshold, neighbor_fraction, contrast) & ~found
        if not new.any():
            break
        found |= new
        _fill_with_neighbors(clean, found | ~usable, new)
    return found


def star_contrast(fwhm: float) -> float:
    """Return the largest contrast, in the sense of `find_cosmic_rays`, that a star of this FWHM reaches.

    The steepest profile that seeing makes is a Gaussian.
    """
    shifts = np.linspace(-0.5, 0.5, 5)
    dx, dy = (grid.ravel() for grid in np.meshgrid(shifts, shifts))
    round_psf = (np.full(25, fwhm), np.zeros(25), np.zeros(25))
    stamps = moffat_stamps(dx, dy, *round_psf, 12.0, max(math.ceil(1.7 * fwhm), 3))
    tiles = np.concatenate(list(np.pad(stamps, ((0, 0), (4, 4), (4, 4)))), axis=0).astype(np.float32)
    laplacian = 0.5 * _subsampled_laplacian(tiles)
    median3 = _median3(tiles)
    fine = median3 - scipy.ndimage.median_filter(median3, size=7)
    strong = laplacian > 0.5 * laplacian.max()
    return float((laplacian[strong] / np.maximum(fine[strong], 1e-3 * laplacian.max())).max())


def _one_pass(
    image: Image32,
    noise_floor: Image32,
    usable: BoolArray,
    threshold: float,
    neighbor_fraction: float,
    contrast: float,
) -> BoolArray:
    laplacian = _subsampled_laplacian(image)
    level = max(float(np.median(image[::3, ::3])), 0.0)
    # The noise here is a lower limit, so this pre-selection never loses a candidate.
    maybe = usable & (laplacian > 2.0 * threshold * np.sqrt(noise_floor + 0.25 * level))
    seeds = np.zeros(image.shape, dtype=bool)
    y, x = np.nonzero(maybe)
    if not x.size:
        return seeds
    significance = np.zeros(image.shape, dtype=np.float32)
    noise = np.zeros(image.shape, dtype=np.float32)
    _fill_significance(significance, noise, image, laplacian, noise_floor, x, y)
    strong = significance[y, x] > threshold
    ys, xs = y[strong], x[strong]
    if not xs.size:
        return seeds
    fine = np.concatenate([_fine_structure(image, xs[part], ys[part]) for part in _parts(xs.size, 50_000)])
    # A floor of a hundredth of the noise, as in the reference implementations, where the sky is flat.
    fine = np.maximum(fine / noise[ys, xs], 0.01)
    # Noise may hide the fine structure of sharp stars.
    allowance = 0.5 * max(contrast - 5.0, 0.0)
    sharp = significance[ys, xs] - allowance > contrast * fine
    seeds[ys[sharp], xs[sharp]] = True
    # The ends of rays are fainter, so the threshold is lower beside a detected pixel.
    beside = _grow(seeds, 2) & usable & ~maybe
    y, x = np.nonzero(beside)
    if x.size:
        _fill_significance(significance, noise, image, laplacian, noise_floor, x, y)
    grown = _grow(seeds, 1) & usable & (significance > threshold)
    return np.asarray(_grow(grown, 1) & usable & (significance > neighbor_fraction * threshold))


def _grow(few: BoolArray, radius: int) -> BoolArray:
    """Return the squares around the pixels that are set: quicker than a dilation where they are few."""
    y, x = np.nonzero(few)
    step = np.arange(-radius, radius + 1)
    rows = np.clip(y[:, None] + step, 0, few.shape[0] - 1)
    columns = np.clip(x[:, None] + step, 0, few.shape[1] - 1)
    grown = np.zeros_like(few)
    grown[rows[:, :, None], columns[:, None, :]] = True
    return grown


def _fill_significance(
    significance: Image32,
    noise: Image32,
    image: Image32,
    laplacian: Image32,
    noise_floor: Image32,
    x: IntArray,
    y: IntArray,
) -> None:
    """Return the significance of the Laplacian, and the noise that it refers to, at the given pixels."""
    for part in _parts(x.size):
        smooth = _median_of_windows(gather_windows(image, x[part], y[part], 2))
        noise[y[part], x[part]] = np.sqrt(noise_floor[y[part], x[part]] + np.maximum(smooth, 0.0))
        excess = laplacian[y[part], x[part]] - _median_of_windows(
            gather_windows(laplacian, x[part], y[part], 2)
        )
        significance[y[part], x[part]] = excess / (2.0 * noise[y[part], x[part]])


def _fine_structure(image: Image32, x: IntArray, y: IntArray) -> Image32:
    """Return the median in 3x3 windows less its own median in 7x7 windows, at the given pixels."""
    median3 = _median3(gather_windows(image, x, y, 4))[:, 1:-1, 1:-1]
    return np.asarray(median3[:, 3, 3] - _median_of_windows(np.ascontiguousarray(median3)))


def _subsampled_laplacian(image: Image32) -> Image32:
    """Laplacian of the image subsampled by two, negative values set to zero, averaged back to the pixels.

    Written out for a pixel split in four, so that the subsampled image need not be made.
    """
    ny = len(image)
    result = np.zeros_like(image)
    for start in range(0, ny, _STRIP):
        rows = np.clip(np.arange(start - 1, min(start + _STRIP, ny) + 1), 0, ny - 1)
        padded = np.pad(image[rows], ((0, 0), (1, 1)), mode="edge")
        left, right = padded[1:-1, :-2], padded[1:-1, 2:]
        below, above = padded[:-2, 1:-1], padded[2:, 1:-1]
        part = result[start : start + _STRIP]
        for horizontal in (left, right):
            beside = 2.0 * padded[1:-1, 1:-1] - horizontal
            for vertical in (below, above):
                part += np.maximum(beside - vertical, 0.0)
        # The kernel's weight of a quarter, and the mean of the four parts.
        part *= 0.25
    return result


def _median3(image: Image32) -> Image32:
    """Return medians in 3x3 windows of the last two axes (Paeth 1990, Graphics Gems)."""
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)], mode="reflect")
    ny, nx = image.shape[-2:]
    v = [padded[..., j : j + ny, i : i + nx] for j in range(3) for i in range(3)]
    exchanges = (
        (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
        (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
    )  # fmt: skip
    for a, b in exchanges:
        v[a], v[b] = np.minimum(v[a], v[b]), np.maximum(v[a], v[b])
    return np.ascontiguousarray(v[4])


def _median_of_windows(windows: Image32) -> Image32:
    flat = windows.reshape(len(windows), -1)
    middle = flat.shape[1] // 2
    return np.ascontiguousarray(np.partition(flat, middle, axis=1)[:, middle])


def _fill_with_neighbors(image: Image32, masked: BoolArray, pixels: BoolArray) -> None:
    """Replace ``pixels`` by the median of the unmasked pixels in 5x5 windows, in place."""
    y, x = np.nonzero(pixels)
    windows = gather_windows(image, x, y, 2).reshape(x.size, -1)
    hidden = gather_windows(masked, x, y, 2).reshape(x.size, -1)
    values = np.where(hidden, np.nan, windows)
    empty = hidden.all(axis=1)
    values[empty] = windows[empty]
    image[y, x] = np.nanmedian(values, axis=1)


def _parts(size: int, step: int = 200_000) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


_BLOCK = 128
_NEIGHBORHOOD = 11

_DEFECTIVE = 6.5
"""Significance from which on a pixel or a part of a column is a defect."""


def find_defects(scaled: FloatImage, masked: BoolArray) -> BoolArray:
    """Return pixels far below their neighbors, and parts of columns that differ from the columns beside them.

    Parameters
    ----------
    scaled
        Sky-subtracted image in units of the sky's noise.
    masked
        Pixels that are known to be bad.
    """
    clean = np.where(masked | ~np.isfinite(scaled), 0.0, scaled).astype(np.float32)
    return _dead_pixels(clean) | _columns(clean)


def _dead_pixels(clean: Image32) -> BoolArray:
    """Return pixels that are darker than the sky: no light has a negative sign."""
    found = clean < -_DEFECTIVE
    y, x = np.nonzero(found)
    if not x.size or x.size > 0.2 * found.size:
        return np.zeros(clean.shape, dtype=bool)
    around = np.median(gather_windows(clean, x, y, 2).reshape(x.size, -1), axis=1)
    found[y, x] = clean[y, x] - around < -_DEFECTIVE
    return np.asarray(found)


def _columns(clean: Image32) -> BoolArray:
    found = np.zeros(clean.shape, dtype=bool)
    if clean.shape[1] < 2 * _NEIGHBORHOOD or clean.shape[0] < 32:
        return found
    edges = np.linspace(0, clean.shape[0], max(round(clean.shape[0] / _BLOCK), 1) + 1).astype(int)
    # A defect is in all of its pixels, and so in the quartile nearest to the sky; stars are only in some.
    parts = [clean[start:stop:3] for start, stop in itertools.pairwise(edges)]
    low, high = np.stack([np.percentile(part, (25.0, 75.0), axis=0) for part in parts], axis=1)
    differs = np.fmax(_beside(low, edges), _beside(-high, edges))
    for block, (start, stop) in enumerate(itertools.pairwise(edges)):
        found[start:stop, differs[block] > _DEFECTIVE] = True
    # A defect that begins or ends inside a block is seen only if it fills three quarters of it.
    some = found.any(axis=0)
    found[:, some] = scipy.ndimage.maximum_filter1d(found[:, some], 2 * (3 * _BLOCK // 4) + 1, axis=0)
    # Where every column differs from the next, none is defective: a mosaic of colors, say.
    return found if found.mean() < 0.1 else np.zeros_like(found)


def _beside(quartiles: Image32, edges: IntArray) -> Image32:
    """Return by how much quartiles of columns exceed those beside them, in units of the error.

    The error is that of so many pixels of unit noise, every third row, or the scatter that stars make where
    they are crowded.
    """
    differs = quartiles - scipy.ndimage.median_filter(quartiles, (1, _NEIGHBORHOOD), mode="nearest")
    scatter = MAD_TO_SIGMA * np.median(np.abs(differs), axis=1, keepdims=True)
    return np.asarray(differs / np.maximum(scatter, 1.3626 / np.sqrt((edges[1] - edges[0]) / 3.0)))
