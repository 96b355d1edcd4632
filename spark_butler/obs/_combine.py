"""Combining assembled frames into master calibrations.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ("combine", "normalize")

import numpy as np

_CLIP = 5.0
_MAD_TO_SIGMA = 1.4826
_ROWS = 256


def combine(frames: list[np.ndarray]) -> np.ndarray:
    """Return the clipped mean of aligned frames.

    Parameters
    ----------
    frames
        Arrays of one shape.

    Returns
    -------
    mean
        ``float32``.  Of three and more frames, values 5 sigma from their pixel's median are left out.
        Sigma is the pixel's own spread or the frames' typical spread, whichever is larger: the spread of a
        few values at one pixel is too often small by chance.
    """
    if len(frames) < 3:
        return np.mean(frames, axis=0, dtype=np.float64).astype(np.float32)
    mean = np.empty_like(frames[0], dtype=np.float32)
    # In bands of rows, so that the copies stay small.
    bands = [slice(start, start + _ROWS) for start in range(0, len(mean), _ROWS)]
    typical = float(np.median([_spread(np.stack([f[band] for f in frames])) for band in bands]))
    for band in bands:
        stack = np.stack([frame[band] for frame in frames])
        deviation = np.abs(stack - np.median(stack, axis=0))
        sigma = np.maximum(_MAD_TO_SIGMA * np.median(deviation, axis=0), typical)
        kept = deviation <= _CLIP * sigma
        mean[band] = np.where(kept, stack, 0.0).sum(axis=0, dtype=np.float64) / kept.sum(axis=0)
    return mean


def _spread(stack: np.ndarray) -> float:
    return float(np.median(np.std(stack, axis=0, ddof=1)))


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
