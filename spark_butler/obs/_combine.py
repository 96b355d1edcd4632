"""Combination of assembled frames into master calibrations.  Runs in the driver."""

from __future__ import annotations

__all__ = ("PairNoise", "combine", "combine_with_variance", "compare", "normalize")

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

_CLIP = 5.0
_MAD_TO_SIGMA = 1.4826
_QUARTILE_TO_SIGMA = 1.0 / 1.1503
_ROWS = 256
_COMPARED = 100_000
_AROUND, _NOISY = 15, 25.0
"""Pixels along the area that a pixel's variance comes from, and the ratio above which it is its own."""

_WORST = 5.0
"""Greatest difference of a frame from its best partner, in units of the difference of the best pair."""


def combine(frames: list[np.ndarray]) -> np.ndarray:
    """Return the clipped mean of aligned frames."""
    return _average(frames)[0]


def combine_with_variance(frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Combine aligned frames; return the mean and its variance.

    Of three or more frames, values over 5 sigma from their pixel's median are left out.  Sigma is the pixel's
    own spread or the frames' typical spread, whichever is larger: the spread of a few values at one pixel is
    too often small by chance.  The variance is from the spread of the frames about the mean; NaN for a single
    frame.
    """
    mean, squares, number = _average(frames)
    return mean, _local_variance(squares, number - 1.0) / number


def _average(frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the clipped mean of frames, the sum of squared deviations from it, and the number of values."""
    mean, squares = (np.empty(frames[0].shape, dtype=np.float32) for _ in range(2))
    number = np.full(frames[0].shape, len(frames), dtype=np.float32)
    # In bands of rows, so that the copies stay small.
    bands = [slice(start, start + _ROWS) for start in range(0, len(mean), _ROWS)]
    clip = len(frames) > 2
    typical = 0.0
    if clip:
        typical = float(np.median([_spread(np.stack([f[band] for f in frames])) for band in bands]))
    for band in bands:
        stack = np.stack([frame[band] for frame in frames])
        kept = np.ones(stack.shape, dtype=bool)
        if clip:
            deviation = np.abs(stack - np.median(stack, axis=0))
            sigma = np.maximum(_MAD_TO_SIGMA * np.median(deviation, axis=0), typical)
            kept = deviation <= _CLIP * sigma
            number[band] = kept.sum(axis=0)
        mean[band] = np.where(kept, stack, 0.0).sum(axis=0, dtype=np.float64) / number[band]
        squares[band] = np.where(kept, (stack - mean[band]) ** 2, 0.0).sum(axis=0)
    return mean, squares, number


def _local_variance(squares: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Return the variance of single frames, from sums of squared deviations and their degrees of freedom.

    A few frames don't tell a pixel's variance, so it is that of the pixels around; but for those that are
    much noisier, such as hot ones.
    """
    known = np.isfinite(squares) & (freedom > 0.0)
    own = np.divide(squares, freedom, out=np.full_like(squares, np.nan), where=known)
    if not known.any():
        return np.asarray(own)
    smooth: np.ndarray = np.full_like(own, np.median(own[known]))
    for _ in range(2):
        quiet = known & (own <= _NOISY * smooth)
        around, weight = (
            scipy.ndimage.uniform_filter(
                np.where(quiet, plane, 0.0), _AROUND, mode="nearest", output=np.float64
            )
            for plane in (squares, freedom)
        )
        smooth = np.divide(around, weight, out=own.astype(np.float64), where=weight > 1e-6)
    return np.asarray(np.where(known & (own > _NOISY * smooth), own, smooth), dtype=np.float32)


def _spread(stack: np.ndarray) -> float:
    return float(np.median(np.std(stack, axis=0, ddof=1)))


@dataclasses.dataclass(frozen=True)
class PairNoise:
    """Agreement of frames with each other."""

    noise: float
    """Noise of one frame, from the two frames that agree best; NaN for a single frame."""

    outliers: dict[int, float]
    """Index of each frame that agrees with no other, and its deviation in units of the noise."""


def compare(frames: Sequence[np.ndarray]) -> PairNoise:
    """Compare frames of one kind by the differences of all pairs."""
    step = max(1, frames[0].size // _COMPARED)
    thin = [frame.ravel()[::step] for frame in frames]
    # The upper quartile: a frame is unusable if a quarter of it is spoiled.
    deviation = np.array([[np.nanpercentile(np.abs(a - b), 75.0) for a in thin] for b in thin])
    np.fill_diagonal(deviation, np.inf)
    if len(frames) < 2:
        return PairNoise(float("nan"), {})
    best = deviation.min(axis=1)
    # Frames of few ADU agree to within a digit.
    typical = max(float(best.min()), 1e-6 * float(np.nanmedian(np.abs(thin[0]))) + 1e-12)
    outliers = {}
    if len(frames) > 2:
        outliers = {
            n: float(value / typical) for n, value in enumerate(best) if not value <= _WORST * typical
        }
    return PairNoise(_QUARTILE_TO_SIGMA * float(np.median(best)) / np.sqrt(2.0), outliers)


def normalize(image: np.ndarray) -> np.ndarray:
    """Return an image divided by its median; dead pixels stay near 0, and isr masks them.

    Raises
    ------
    ValueError
        Raised if the median of the finite pixels is not positive, or fewer than half are finite.
    """
    finite = np.isfinite(image)
    if finite.mean() < 0.5:
        raise ValueError(f"{finite.mean():.0%} of the pixels are finite; a flat needs half of them")
    median = float(np.median(image[finite]))
    if not median > 0:
        raise ValueError(f"the median is {median:g}, which is no illumination")
    return (image / np.float32(median)).astype(np.float32, copy=False)
