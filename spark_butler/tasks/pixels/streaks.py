"""Find sources on long and narrow features: trails of satellites, spectra, columns.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("find_aligned", "on_streak")

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.stats

from . import BoolArray, FloatArray, IntArray

_FEWEST, _CHANCE, _MOST_LINES = 8, 1e-4, 6
"""Fewest sources on a line, its probability by chance in an image, and the largest number of lines."""


def find_aligned(x: FloatArray, y: FloatArray, shape: tuple[int, ...], sigma: float) -> BoolArray:
    """Return which sources lie on a straight line through the image, with too many others for chance.

    A faint trail breaks up into single detections.  The sources beside the line say how many there are by
    chance, so that a cluster of stars is no line.  Stars on a grid, as of injected sources, are on more lines
    than an image has trails, and none is returned.
    """
    aligned = np.zeros(len(x), dtype=bool)
    half = max(2.0 * sigma, 2.0)
    size = math.hypot(*shape[:2])
    angles = np.linspace(0.0, math.pi, math.ceil(math.pi * size / (2.0 * half)), endpoint=False)
    cosine, sine = np.cos(angles), np.sin(angles)
    dx, dy = x - 0.5 * shape[1], y - 0.5 * shape[0]
    strips = 2 * math.ceil(0.5 * size / half) + 12
    for _ in range(_MOST_LINES):
        rest = np.nonzero(~aligned)[0]
        if rest.size < _FEWEST:
            break
        counts = np.empty((angles.size, strips))
        for k in range(angles.size):
            strip = np.floor((dx[rest] * cosine[k] + dy[rest] * sine[k]) / half).astype(np.intp) + strips // 2
            counts[k] = np.bincount(strip, minlength=strips)
        angle, strip, chance = _best_line(counts)
        if chance * counts.size > _CHANCE:
            break
        distance = (dx * cosine[angle] + dy * sine[angle]) / half - (strip - strips // 2)
        on_line = (distance >= 0.0) & (distance < 2.0)
        along = (dy * cosine[angle] - dx * sine[angle])[on_line & ~aligned]
        # A clump of stars is short.
        if np.ptp(np.percentile(along, (25.0, 75.0))) < 25.0 * sigma:
            break
        aligned |= on_line
    else:
        return np.zeros(len(x), dtype=bool)
    return aligned


def _best_line(counts: FloatArray) -> tuple[int, int, float]:
    """Return the angle and the first of two strips that are least probable by chance, and how probable."""
    pair = counts + np.roll(counts, -1, axis=1)
    # Four strips on either side, one apart from the pair; the fuller side counts.
    four = scipy.ndimage.uniform_filter1d(counts, 4, axis=1, mode="constant") * 4.0
    expected = 0.5 * np.maximum(np.roll(four, 3, axis=1), np.roll(four, -5, axis=1))
    # By chance, the four strips may be empty.
    expected += 0.5
    chance = np.where(pair >= _FEWEST, scipy.stats.poisson.sf(pair - 1.0, expected), 1.0)
    angle, strip = np.unravel_index(int(np.argmin(chance)), chance.shape)
    return int(angle), int(strip), float(chance[angle, strip])


def on_streak(footprint: BoolArray, x: IntArray, y: IntArray, sigma: float) -> BoolArray:
    """Return which positions lie on connected pixels that form a long and narrow feature."""
    labels, count = scipy.ndimage.label(footprint, structure=np.ones((3, 3), dtype=bool))
    if not count or not x.size:
        return np.zeros(x.size, dtype=bool)
    rows, columns = np.nonzero(labels)
    which = labels[rows, columns]
    number = np.bincount(which, minlength=count + 1).astype(np.float64)
    number[0] = 1.0

    def mean(values: npt.NDArray[Any]) -> FloatArray:
        return np.asarray(np.bincount(which, weights=values, minlength=count + 1) / number)

    mx, my = mean(columns), mean(rows)
    dx, dy = columns - mx[which], rows - my[which]
    xx, yy, xy = mean(dx**2), mean(dy**2), mean(dx * dy)
    half, root = 0.5 * (xx + yy), np.sqrt(0.25 * (xx - yy) ** 2 + xy**2)
    # The variance of a line of length L is L^2 / 12.
    length, width = np.sqrt(12.0 * (half + root)), np.sqrt(12.0 * np.maximum(half - root, 0.0) + 1.0)
    streak = (length > max(25.0 * sigma, 40.0)) & (length > 5.0 * width)
    streak[0] = False
    return np.asarray(streak[labels[y, x]])
