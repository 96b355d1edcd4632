"""Detect sources with a filter matched to the PSF."""

from __future__ import annotations

__all__ = ("Detections", "detect_sources", "sky_variance")

import dataclasses
import math

import numpy as np
import scipy.ndimage
import scipy.spatial

from . import BoolArray, FloatArray, FloatImage, Image32, IntArray
from .stamps import gather_windows
from .streaks import on_streak

_SAMPLES_PER_PAIR = 24

_STRIP, _BLOCK, _TRUNCATE = 256, 64, 3.5
"""Rows, and pixels of a row, that are filtered at a time; standard deviations after which the filters end."""


@dataclasses.dataclass(frozen=True)
class Detections:
    """Peaks of the matched-filter significance, brightest first, and the pixels above threshold."""

    x: FloatArray
    """Column of each peak, interpolated below the pixel."""

    y: FloatArray
    """Row of each peak, interpolated below the pixel."""

    significance: FloatArray
    """Signal-to-noise ratio of a point source at the peak, sky noise only."""

    footprint: BoolArray
    """Pixels above the threshold, shape of the image."""

    streak: BoolArray
    """Whether a peak lies on a long and narrow feature: a satellite's trail, a spectrum, a column."""

    def __len__(self) -> int:
        return len(self.x)


def sky_variance(
    image: FloatImage, variance: FloatImage, background: FloatImage, floor: FloatImage
) -> Image32:
    """Return the variance of the sky and the read-out alone, without the sources' own photon noise.

    Parameters
    ----------
    image
        Image in electrons divided by the flat, sky included.
    variance
        Full variance of its pixels: ``image / flat + floor / flat**2``.
    background
        Sky level in the units of the image.
    floor
        Variance of the read-out in electrons squared, before the division by the flat.
    """
    result = np.empty(image.shape, dtype=np.float32)
    for start in range(0, len(image), _STRIP):
        rows = slice(start, start + _STRIP)
        light, level = np.maximum(image[rows], 0.0), np.maximum(background[rows], 0.0)
        # The flat follows from the variance: it solves ``variance * flat**2 - light * flat - floor = 0``.
        safe = np.maximum(variance[rows], 1e-6)
        flat = (light + np.sqrt(light**2 + 4.0 * safe * floor[rows])) / (2.0 * safe)
        flat = np.maximum(flat, 1e-3)
        result[rows] = level / flat + floor[rows] / flat**2
    return result


@dataclasses.dataclass(frozen=True)
class _Frame:
    """An image, its variance and that of its sky, and which pixels are good."""

    image: FloatImage
    variance: FloatImage
    sky: FloatImage
    good: BoolArray

    def excess(self, x: IntArray, y: IntArray, radius: int) -> FloatImage:
        """Return the ratio of the full variance to that of the sky in windows; one where not good."""
        good = gather_windows(self.good, x, y, radius)
        variance, sky = (gather_windows(array, x, y, radius) for array in (self.variance, self.sky))
        return np.divide(variance, sky, out=np.ones_like(variance), where=good)

    def pixel_significance(self, x: IntArray, y: IntArray, radius: int) -> FloatImage:
        """Return the signal-to-noise ratio of single pixels in windows; zero where not good."""
        good = gather_windows(self.good, x, y, radius)
        image, sky = (gather_windows(array, x, y, radius) for array in (self.image, self.sky))
        return np.divide(image, np.sqrt(sky), out=np.zeros_like(image), where=good)

    def matched_filters(self, *sigmas: float) -> list[Image32]:
        """Return the signal-to-noise ratio of a point source at every pixel, for PSFs of these widths."""
        results = [np.zeros(self.good.shape, dtype=np.float32) for _ in sigmas]
        every = slice(None, None, 3), slice(None, None, 3)
        chosen = self.good[every]
        typical = float(np.median(1.0 / (self.sky[every][chosen] if chosen.any() else self.sky[self.good])))
        ny = len(self.good)
        # In strips that fit the processor's cache.
        for start in range(0, ny, _STRIP):
            stop = min(start + _STRIP, ny)
            for sigma, result in zip(sigmas, results, strict=True):
                margin = math.ceil(_TRUNCATE * sigma) + 1
                rows = slice(max(start - margin, 0), stop + margin)
                inner = slice(start - rows.start, stop - rows.start)
                result[start:stop] = self._filter_strip(rows, inner, sigma, typical)
        return results

    def _filter_strip(self, rows: slice, inner: slice, sigma: float, typical: float) -> Image32:
        good = self.good[rows]
        weight = np.zeros(good.shape, dtype=np.float32)
        np.divide(1.0, self.sky[rows], out=weight, where=good, casting="same_kind")
        data = np.zeros_like(weight)
        np.multiply(self.image[rows], weight, out=data, where=good, casting="same_kind")
        numerator = _smooth(data, sigma)[inner]
        # The square of a Gaussian is a narrower Gaussian, of the integral 1 / (4 pi sigma^2).
        weight = _smooth(weight, sigma / math.sqrt(2.0))[inner]
        # Where most of the PSF is masked or off the image a peak has no meaning.
        usable = weight > 0.3 * typical
        result = np.zeros_like(numerator)
        np.divide(numerator, np.sqrt(weight), out=result, where=usable)
        return result * np.float32(2.0 * math.sqrt(math.pi) * sigma)


def _smooth(image: Image32, sigma: float) -> Image32:
    """Return an image smoothed by a Gaussian, zero beyond its edges.

    Products of matrices take half the time of `scipy.ndimage`.
    """
    reach = int(_TRUNCATE * sigma + 0.5)
    offset = np.arange(_BLOCK + 2 * reach)[:, None] - np.arange(_BLOCK) - reach
    band = np.where(np.abs(offset) <= reach, np.exp(-0.5 * (offset / sigma) ** 2), 0.0)
    band = (band / band[:, 0].sum()).astype(np.float32)
    for _ in range(2):
        smoothed = np.empty(image.shape, dtype=np.float32)
        size = image.shape[1]
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            low, high = max(start - reach, 0), min(stop + reach, size)
            part = band[low - start + reach : high - start + reach, : stop - start]
            np.matmul(image[:, low:high], part, out=smoothed[:, start:stop])
        # Along the other axis next, and back.
        image = smoothed.T
    return image


def detect_sources(
    image: FloatImage,
    variance: FloatImage,
    sky: FloatImage,
    masked: BoolArray,
    sigma: float,
    *,
    threshold: float = 5.0,
    contrast: float = 2.0,
    reject_sharp: bool = True,
) -> Detections:
    """Find point-like peaks.

    The image is weighted by the inverse sky variance and correlated with the PSF, so that the result is the
    signal-to-noise ratio of a point source at each pixel; masked pixels have no weight.

    Parameters
    ----------
    image
        Sky-subtracted image in electrons, shape ``(ny, nx)``.
    variance
        Full variance of its pixels, in electrons squared.
    sky
        Variance of the sky and the read-out alone, as from `sky_variance`.
    masked
        Pixels that carry no information (defects, cosmic rays).  Saturated ones do.
    sigma
        Standard deviation of the Gaussian PSF in pixels.
    threshold
        Least significance.
    contrast
        How far the significance must fall between a peak and every brighter one near it, in units of the
        noise at the fainter peak; peaks in the noise of a bright source's wings don't.
    reject_sharp
        Whether to drop peaks that are sharper than the PSF allows: unmasked remains of cosmic rays and hot
        pixels.
    """
    frame = _Frame(image, variance, sky, ~masked & np.isfinite(image) & (variance > 0.0))
    if not frame.good.any():
        nothing = np.zeros(0)
        return Detections(nothing, nothing, nothing, footprint=frame.good, streak=np.zeros(0, dtype=bool))
    significance, finer = frame.matched_filters(sigma, 0.5 * sigma)
    _bridge(~frame.good, significance, finer)
    footprint = significance >= threshold
    x, y = _find_peaks(significance, frame, sigma, threshold, contrast, reach=12.0 * sigma)
    # The filter widens stars and merges close pairs; one half as wide tells the bright ones apart.
    fine_x, fine_y = _find_peaks(
        np.where(footprint, finer, np.float32(0.0)),
        frame,
        0.5 * sigma,
        1.5 * threshold,
        2.0 * contrast,
        reach=12.0 * sigma,
        relative=0.05,
    )
    alone = _have_none_near(x, y, fine_x, fine_y, 1.8 * sigma)
    x, y = x[alone], y[alone]
    # Below the pixel, each peak is where its own filter has it.
    dx, dy = np.concatenate(
        [_interpolate_peak(finer, fine_x, fine_y), _interpolate_peak(significance, x, y)], axis=1
    )
    x, y = np.concatenate([fine_x, x]), np.concatenate([fine_y, y])
    order = np.argsort(-significance[y, x], kind="stable")
    if reject_sharp and x.size:
        order = order[~_is_sharp(frame, significance, x[order], y[order], sigma)]
    x, y, dx, dy = x[order], y[order], dx[order], dy[order]
    return Detections(
        x=x + dx,
        y=y + dy,
        significance=significance[y, x].astype(np.float64),
        footprint=footprint,
        streak=on_streak(footprint, x, y, sigma),
    )


def _bridge(masked: BoolArray, *images: Image32) -> None:
    """Give masked pixels the largest value beside them, up to two pixels deep, in place.

    A bad column through a star is no valley between two.
    """
    for _ in range(2):
        inner = masked.copy()
        inner[1:] &= masked[:-1]
        inner[:-1] &= masked[1:]
        inner[:, 1:] &= masked[:, :-1]
        inner[:, :-1] &= masked[:, 1:]
        y, x = np.nonzero(masked & ~inner)
        for image in images:
            # A little less, so that the peak is still the pixel beside it.
            image[y, x] = np.float32(0.9999) * gather_windows(image, x, y, 1).max(
                axis=(1, 2), initial=-np.inf
            )
        masked = inner


def _find_peaks(
    significance: Image32,
    frame: _Frame,
    sigma: float,
    threshold: float,
    contrast: float,
    *,
    reach: float,
    relative: float = 0.0,
) -> tuple[IntArray, IntArray]:
    """Return the local maxima above a threshold that stand out, brightest first.

    A saddle must lie ``contrast`` times the noise, and the fraction ``relative`` of the peak, below the peak.
    """
    y, x = np.nonzero(significance >= threshold)
    highest = gather_windows(significance, x, y, 1).max(axis=(1, 2), initial=-np.inf)
    peak = significance[y, x] >= highest
    x, y = x[peak], y[peak]
    order = np.argsort(-significance[y, x], kind="stable")
    x, y = x[order], y[order]
    if not x.size:
        return x, y
    # The mean of the excess under the square of the filter.
    radius = max(int(np.ceil(2.5 * sigma)), 1)
    offsets = np.arange(-radius, radius + 1) / sigma
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2)).ravel()
    mean = frame.excess(x, y, radius).reshape(x.size, kernel.size) @ (kernel / kernel.sum())
    noise = np.sqrt(np.maximum(mean, 1.0))
    needed = np.maximum(contrast * noise, relative * significance[y, x])
    keep = _stands_out(significance, x, y, needed, reach)
    return x[keep], y[keep]


def _have_none_near(
    x: IntArray, y: IntArray, other_x: IntArray, other_y: IntArray, radius: float
) -> BoolArray:
    """Tell which positions have none of the other ones within ``radius``."""
    if not other_x.size or not x.size:
        return np.ones(x.size, dtype=bool)
    tree = scipy.spatial.cKDTree(np.column_stack([other_x, other_y]))
    return np.asarray(tree.query(np.column_stack([x, y]))[0] > radius)


def _is_sharp(frame: _Frame, significance: Image32, x: IntArray, y: IntArray, sigma: float) -> BoolArray:
    """Tell which peaks are more like one pixel than like the PSF.

    A star's brightest pixel has ``1 / (sqrt(pi) sigma)`` times the significance of the star, a lone pixel
    ``sqrt(pi) sigma`` times that of its filtered image.
    """
    brightest = frame.pixel_significance(x, y, 1).max(axis=(1, 2), initial=-np.inf)
    total = significance[y, x]
    star = total / (np.sqrt(np.pi) * sigma)
    # The boundary is the geometric mean of the two ratios, which is one, and three times the pixel's noise.
    sharp: BoolArray = (brightest > total) & (brightest > star + 3.0 * np.sqrt(1.0 + 0.0025 * star**2))
    return sharp


def _stands_out(
    significance: Image32, x: IntArray, y: IntArray, needed: FloatImage, reach: float
) -> BoolArray:
    """Tell which peaks rise by ``needed`` above the saddle towards every brighter peak within ``reach``."""
    keep = np.ones(x.size, dtype=bool)
    pairs = scipy.spatial.cKDTree(np.column_stack([x, y])).query_pairs(reach, output_type="ndarray")
    if not len(pairs):
        return keep
    # Peaks are sorted: the first of a pair is the brighter one.
    bright, faint = pairs.min(axis=1), pairs.max(axis=1)
    steps = np.linspace(0.0, 1.0, _SAMPLES_PER_PAIR)
    along_x = x[faint, None] + steps * (x[bright] - x[faint])[:, None]
    along_y = y[faint, None] + steps * (y[bright] - y[faint])[:, None]
    lowest = scipy.ndimage.map_coordinates(significance, [along_y, along_x], order=1, mode="nearest").min(
        axis=1
    )
    keep[faint[significance[y, x][faint] - lowest < needed[faint]]] = False
    return keep


def _interpolate_peak(significance: Image32, x: IntArray, y: IntArray) -> tuple[FloatArray, FloatArray]:
    """Offset of the vertex of the parabola through three pixels, along both axes."""
    ny, nx = significance.shape
    center = significance[y, x].astype(np.float64)

    def vertex(before: Image32, after: Image32) -> FloatArray:
        curvature = before - 2.0 * center + after
        offset = np.zeros_like(center)
        np.divide(0.5 * (before.astype(np.float64) - after), curvature, out=offset, where=curvature < 0.0)
        return np.clip(offset, -0.5, 0.5)

    left, right = np.maximum(x - 1, 0), np.minimum(x + 1, nx - 1)
    below, above = np.maximum(y - 1, 0), np.minimum(y + 1, ny - 1)
    return (
        vertex(significance[y, left], significance[y, right]),
        vertex(significance[below, x], significance[above, x]),
    )
