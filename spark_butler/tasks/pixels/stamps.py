"""Cut-outs of images, and centroids and moments of what is on them.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "AdaptiveMoments",
    "gather_windows",
    "measure_moments",
    "nearest_pixel",
    "stamp_offsets",
    "windowed_centroids",
)

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from . import BoolArray, FloatArray, FloatImage, IntArray


def gather_windows[T: np.generic](
    array: npt.NDArray[T], x: IntArray, y: IntArray, radius: int, *, fill: Any = None
) -> npt.NDArray[T]:
    """Copy the square windows, ``2 * radius + 1`` pixels wide, that are centered on pixels of the image.

    Pixels of a window that fall off the image are ``fill``; by default the image is mirrored at its edge.
    """
    step = np.arange(-radius, radius + 1)
    rows, columns = y[:, None] + step, x[:, None] + step
    ny, nx = array.shape
    # Only the windows' own pixels are touched: images are large, windows few.
    inside = ((rows >= 0) & (rows < ny))[:, :, None] & ((columns >= 0) & (columns < nx))[:, None, :]
    rows, columns = _mirrored(rows, ny), _mirrored(columns, nx)
    values: npt.NDArray[T] = array[rows[:, :, None], columns[:, None, :]]
    if fill is not None:
        values[~inside] = fill
    return values


def _mirrored(index: IntArray, size: int) -> IntArray:
    index = np.abs(index)
    return np.asarray(np.clip(np.where(index > size - 1, 2 * (size - 1) - index, index), 0, size - 1))


def nearest_pixel(x: FloatArray, y: FloatArray, shape: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Column and row of the pixel of the image that is nearest to each position."""
    return (
        np.clip(np.rint(x), 0, shape[1] - 1).astype(np.intp),
        np.clip(np.rint(y), 0, shape[0] - 1).astype(np.intp),
    )


def stamp_offsets(radius: int) -> FloatArray:
    """Pixel offsets from the center along one axis of a window of this radius."""
    return np.arange(-radius, radius + 1, dtype=np.float64)


_WIDER = 0.6
"""Square pixels by which the weight's moments exceed the source's."""


@dataclasses.dataclass(frozen=True)
class AdaptiveMoments:
    """Second moments of sources, deweighted, in pixels squared."""

    ixx: FloatArray
    iyy: FloatArray
    ixy: FloatArray
    ok: BoolArray
    """Whether the iteration stayed within bounds."""

    @property
    def sigma(self) -> FloatArray:
        """Determinant radius in pixels: the standard deviation of a Gaussian of the same area."""
        return np.asarray(np.maximum(self.ixx * self.iyy - self.ixy**2, 0.0) ** 0.25)


def windowed_centroids(
    stamps: FloatImage, dx: FloatArray, dy: FloatArray, sigma: float, *, reach: float = 2.0
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return centroids with a circular Gaussian weight as wide as the PSF (the XWIN of SExtractor).

    Positions are relative to the central pixel of each stamp.  Sources that move farther than ``reach`` from
    the first guess keep it, and the third array is `False` for them.  The weight is at least 0.85 pixels
    wide, which pixels still sample.
    """
    offsets = stamp_offsets(stamps.shape[1] // 2)
    sigma = max(sigma, 0.85)
    x, y = dx.copy(), dy.copy()
    # Each step is twice the weighted mean offset: the exact step for a source as wide as the weight.
    for _ in range(6):
        weight_x = np.exp(-0.5 * ((offsets - x[:, None]) / sigma) ** 2)
        weight_y = np.exp(-0.5 * ((offsets - y[:, None]) / sigma) ** 2)
        # The weight is a product of one in x and one in y, so sums over stamps are two small contractions.
        rows = np.einsum("nji,ni->nj", stamps, weight_x)
        total = np.einsum("nj,nj->n", rows, weight_y)
        moment_y = np.einsum("nj,nj->n", rows, weight_y * (offsets - y[:, None]))
        moment_x = np.einsum(
            "nji,ni,nj->n", stamps, weight_x * (offsets - x[:, None]), weight_y, optimize=True
        )
        positive = total > 0.0
        step_x = np.divide(2.0 * moment_x, total, out=np.zeros_like(x), where=positive)
        step_y = np.divide(2.0 * moment_y, total, out=np.zeros_like(y), where=positive)
        x += np.clip(step_x, -1.0, 1.0)
        y += np.clip(step_y, -1.0, 1.0)
    ok = np.hypot(x - dx, y - dy) <= reach
    return np.where(ok, x, dx), np.where(ok, y, dy), ok


def measure_moments(stamps: FloatImage, dx: FloatArray, dy: FloatArray, sigma: float) -> AdaptiveMoments:
    """Return second moments with an elliptical Gaussian weight matched to each source.

    The iteration is that of Bernstein & Jarvis (2002, AJ 123, 583), from the PSF's ``sigma`` on; masked
    pixels must be zero.  Sources that become four times as wide as the PSF, or a fifth as wide, are marked as
    failed.
    """
    offsets = stamp_offsets(stamps.shape[1] // 2)
    u = (offsets[None, :] - dx[:, None])[:, None, :]
    v = (offsets[None, :] - dy[:, None])[:, :, None]
    count = len(stamps)
    ixx, iyy, ixy = np.full(count, sigma**2), np.full(count, sigma**2), np.zeros(count)
    low, high = (sigma / 5.0) ** 2, (4.0 * sigma) ** 2
    ok = np.ones(count, dtype=bool)
    for _ in range(12):
        # A weight that is somewhat wider than the source: pixels don't sample a narrower one.
        wxx, wyy = ixx + _WIDER, iyy + _WIDER
        det = wxx * wyy - ixy**2
        a, b, c = (m[:, None, None] / det[:, None, None] for m in (wyy, wxx, ixy))
        weighted = np.exp(-0.5 * (a * u**2 + b * v**2) + c * u * v) * stamps
        total = weighted.sum(axis=(1, 2))
        positive = total > 0.0
        safe = np.where(positive, total, 1.0)
        columns, rows = weighted.sum(axis=1), weighted.sum(axis=2)
        mxx = (columns * u[:, 0, :] ** 2).sum(axis=1) / safe
        myy = (rows * v[:, :, 0] ** 2).sum(axis=1) / safe
        mxy = np.einsum("nji,nj,ni->n", weighted, v[:, :, 0], u[:, 0, :], optimize=True) / safe
        # The inverse moments of a Gaussian seen through a weight are the sum of both.
        measured = mxx * myy - mxy**2
        positive &= measured > 0.0
        measured = np.where(positive, measured, 1.0)
        pxx, pyy, pxy = myy / measured - wyy / det, mxx / measured - wxx / det, ixy / det - mxy / measured
        inverse = pxx * pyy - pxy**2
        positive &= (inverse > 0.0) & (pxx > 0.0) & (pyy > 0.0)
        inverse = np.where(positive, inverse, 1.0)
        new_xx, new_yy, new_xy = pyy / inverse, pxx / inverse, -pxy / inverse
        ok = positive & (new_xx > low) & (new_yy > low) & (new_xx < high) & (new_yy < high)
        ixx = np.clip(np.where(positive, new_xx, ixx), low, high)
        iyy = np.clip(np.where(positive, new_yy, iyy), low, high)
        limit = 0.9 * np.sqrt(ixx * iyy)
        ixy = np.clip(np.where(positive, new_xy, ixy), -limit, limit)
    return AdaptiveMoments(ixx=ixx, iyy=iyy, ixy=ixy, ok=ok)
