"""Find dead pixels and hot or dead columns that no list of defects names.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("find_defects",)

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from .stamps import gather_windows

type BoolArray = npt.NDArray[np.bool_]

_BLOCK = 128
_NEIGHBORHOOD = 11


def find_defects(
    scaled: npt.NDArray[np.floating[Any]], masked: BoolArray, *, threshold: float = 6.5
) -> BoolArray:
    """Return pixels far below their neighbors, and parts of columns that differ from the columns beside them.

    Parameters
    ----------
    scaled
        Sky-subtracted image in units of the sky's noise.
    masked
        Pixels that are known to be bad.
    threshold
        Significance from which on a pixel or a part of a column is a defect.
    """
    clean = np.where(masked | ~np.isfinite(scaled), 0.0, scaled).astype(np.float32)
    return _dead_pixels(clean, threshold) | _columns(clean, threshold)


def _dead_pixels(clean: npt.NDArray[np.float32], threshold: float) -> BoolArray:
    """Return pixels that are darker than the sky: no light has a negative sign."""
    found = clean < -threshold
    y, x = np.nonzero(found)
    if not x.size or x.size > 0.2 * found.size:
        return np.zeros(clean.shape, dtype=bool)
    around = np.median(gather_windows(clean, x, y, 2).reshape(x.size, -1), axis=1)
    found[y, x] = clean[y, x] - around < -threshold
    return np.asarray(found)


def _columns(clean: npt.NDArray[np.float32], threshold: float) -> BoolArray:
    found = np.zeros(clean.shape, dtype=bool)
    if clean.shape[1] < 2 * _NEIGHBORHOOD or clean.shape[0] < 32:
        return found
    edges = np.linspace(0, clean.shape[0], max(round(clean.shape[0] / _BLOCK), 1) + 1).astype(int)
    medians = np.stack([np.median(clean[start:stop:3], axis=0) for start, stop in itertools.pairwise(edges)])
    differs = medians - scipy.ndimage.median_filter(medians, (1, _NEIGHBORHOOD), mode="nearest")
    # The error of the median of so many pixels of unit noise (every third row is enough), or the scatter that
    # stars make where they are crowded.
    scatter = 1.4826 * np.median(np.abs(differs), axis=1, keepdims=True)
    differs /= np.maximum(scatter, 1.2533 / np.sqrt((edges[1] - edges[0]) / 3.0))
    for block, (start, stop) in enumerate(itertools.pairwise(edges)):
        found[start:stop, np.abs(differs[block]) > threshold] = True
    # Where every column differs from the next, none is defective: a mosaic of colors, say.
    return found if found.mean() < 0.1 else np.zeros_like(found)
