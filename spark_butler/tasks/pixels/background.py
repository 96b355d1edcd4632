"""Model the sky background on a mesh."""

from __future__ import annotations

__all__ = ("BackgroundMesh", "NoBackgroundError", "estimate_background", "mask_sources", "structured_sky")

import dataclasses
import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.sparse
from lsst.images import Box
from lsst.images.fields import SplineField

from ...errors import UserError
from . import BoolArray, FloatArray, FloatImage, Image32, IntArray
from .detection import Detections
from .psf_model import FWHM_PER_SIGMA, PsfModel

_SKY_CELL = 4.0
"""Side, in FWHM, of the cells in which the structure of the sky between sources is measured."""

_LEAST_GOOD = 0.1
"""Cells with a smaller fraction of unmasked pixels are filled from their neighbors."""

_CLIP, _PASSES = 3.0, 5
"""Limit of the clipping in standard deviations, and the most passes."""

_OWN_SKEW = 0.06
"""Difference of mean and median that a sky without sources may have, in standard deviations."""


class NoBackgroundError(UserError, ValueError):
    """An image has no pixels from which its background could be measured."""


@dataclasses.dataclass(frozen=True)
class BackgroundMesh:
    """Sky level and noise in the cells of a grid."""

    x: FloatArray
    """Centers of the columns of cells, in pixels, with the image's left and right edges added."""

    y: FloatArray
    """Centers of the rows of cells, in pixels, with the image's lower and upper edges added."""

    level: FloatArray
    """Sky level at the nodes, shape ``(len(y), len(x))``, in the units of the image."""

    noise: float
    """Standard deviation of a sky pixel: the median over the cells, in the units of the image."""

    def plus(self, other: Self) -> Self:
        """Return the sum of two models on the same grid, with the other's noise."""
        return dataclasses.replace(other, level=self.level + other.level)

    def as_field(self, bbox: Box, unit: Any = None) -> SplineField:
        """Return the model as a field that can be stored with an image (Akima splines between the nodes)."""
        return SplineField(
            bbox, self.level.copy(), y=self.y + bbox.y.start, x=self.x + bbox.x.start, unit=unit
        )


def estimate_background(
    image: FloatImage, masked: BoolArray, *, cell: int = 64, smooth: int = 3
) -> BackgroundMesh:
    """Measure the sky in square cells and smooth it.

    Each cell's level is SExtractor's estimate (Bertin & Arnouts 1996): the sigma-clipped mean where the
    clipped distribution is symmetric, else about ``2.5 * median - 1.5 * mean``.

    Parameters
    ----------
    image
        Image, shape ``(ny, nx)``.
    masked
        Pixels to leave out: defects, cosmic rays, sources.
    cell
        Wanted size of the cells in pixels; their number is rounded so that equal cells fill the image.
    smooth
        Width, in cells, of the median filter that removes cells dominated by an object; 1 does nothing.

    Raises
    ------
    ValueError
        Raised if no cell has enough unmasked pixels.
    """
    edges_y, edges_x = (_edges(size, cell) for size in image.shape)
    level = np.full((len(edges_y) - 1, len(edges_x) - 1), np.nan)
    noise = np.full(level.shape, np.nan)
    good = ~masked & np.isfinite(image)
    for j in range(level.shape[0]):
        rows = slice(edges_y[j], edges_y[j + 1])
        for i in range(level.shape[1]):
            columns = slice(edges_x[i], edges_x[i + 1])
            inside = good[rows, columns]
            values = image[rows, columns][inside]
            if values.size > max(_LEAST_GOOD * inside.size, 8):
                level[j, i], noise[j, i] = _sky_of(values)
    empty = np.isnan(level)
    if empty.all():
        raise NoBackgroundError(
            f"No background: of {empty.size} cells of {cell} pixels none has more than "
            f"{_LEAST_GOOD:.0%} unmasked pixels ({good.mean():.1%} of the image is neither masked nor in a "
            "source).  The field is too crowded, one object fills it, or its masks are wrong."
        )
    if empty.any():
        nearest = scipy.ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
        level = level[tuple(nearest)]
    if smooth > 1:
        level = scipy.ndimage.median_filter(level, smooth, mode="nearest")
    # Nodes on the image's own edges keep the splines from extrapolating.
    y, x = _nodes(edges_y), _nodes(edges_x)
    level = _extend(_extend(level).T).T
    return BackgroundMesh(x=x, y=y, level=level, noise=float(np.nanmedian(noise)))


def _edges(size: int, cell: int) -> IntArray:
    count = max(1, round(size / cell))
    return np.linspace(0, size, count + 1).round().astype(np.intp)


def _nodes(edges: IntArray) -> FloatArray:
    centers = 0.5 * (edges[:-1] + edges[1:]) - 0.5
    return np.concatenate([[edges[0] - 0.5], centers, [edges[-1] - 0.5]])


def _extend(level: FloatArray) -> FloatArray:
    """Add a first and a last row by half a step of linear extrapolation."""
    if len(level) == 1:
        return np.repeat(level, 3, axis=0)
    first = 1.5 * level[:1] - 0.5 * level[1:2]
    last = 1.5 * level[-1:] - 0.5 * level[-2:-1]
    return np.concatenate([first, level, last])


def _sky_of(values: FloatImage) -> tuple[float, float]:
    values = np.sort(values).astype(np.float64)
    # Sums of the values up to each, less a typical one, give the spread of any range.
    typical = float(values[values.size // 2])
    sums = np.zeros((2, values.size + 1))
    np.cumsum(values - typical, out=sums[0, 1:])
    np.cumsum((values - typical) ** 2, out=sums[1, 1:])
    low, high = 0, values.size
    for _ in range(_PASSES):
        middle = float(values[(low + high) // 2])
        mean, square = (sums[:, high] - sums[:, low]) / (high - low)
        spread = math.sqrt(max(square - mean**2, 0.0))
        new_low = int(np.searchsorted(values, middle - _CLIP * spread))
        new_high = int(np.searchsorted(values, middle + _CLIP * spread, side="right"))
        if (new_low, new_high) == (low, high) or new_high - new_low < 8:
            break
        low, high = new_low, new_high
    kept = values[low:high]
    # They are sorted.
    middle = 0.5 * float(kept[(kept.size - 1) // 2] + kept[kept.size // 2])
    mean, spread = float(kept.mean()), float(kept.std())
    if spread > 0.0 and abs(mean - middle) / spread > 0.3:
        return middle, spread
    # Poisson noise and digitization skew the distribution by a little without any source.
    return mean - 2.5 * max(mean - middle - _OWN_SKEW * spread, 0.0), spread


def mask_sources(detections: Detections, sigma: float, shape: tuple[int, ...]) -> BoolArray:
    """Return discs around sources, to where the light of their wings is a tenth of the sky noise.

    Parameters
    ----------
    sigma
        Standard deviation of the PSF in pixels.
    shape
        Rows and columns of the image.
    """
    flux = detections.significance * 2.0 * math.sqrt(math.pi) * sigma
    # Wings as wide as those of ordinary seeing.
    model = PsfModel.constant(FWHM_PER_SIGMA * 0.9 * sigma, (1, 1), beta=3.0)
    limit = min(math.ceil(20.0 * sigma), 80)
    reach = np.clip(np.ceil(model.reach(flux, 0.1)), 2, limit).astype(np.intp)
    mask = np.zeros(shape, dtype=bool)
    x, y = np.rint(detections.x).astype(np.intp), np.rint(detections.y).astype(np.intp)
    for radius in np.unique(reach):
        chosen = reach == radius
        offsets = np.arange(-radius, radius + 1)
        dy, dx = np.nonzero(offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2)
        columns = x[chosen, None] + (dx - radius)[None, :]
        rows = y[chosen, None] + (dy - radius)[None, :]
        inside = (columns >= 0) & (columns < shape[1]) & (rows >= 0) & (rows < shape[0])
        mask[rows[inside], columns[inside]] = True
    return mask


def structured_sky(residual: Image32, variance: FloatImage, good: BoolArray, psf: PsfModel) -> Image32 | None:
    """Return what is left of the sky between the sources where it has structure, or `None`.

    Parameters
    ----------
    residual
        Image without sky and sources; zero where not good.
    variance, good
        Variance of its pixels, and which of them to use.
    psf
        The PSF: its width sets the size of the cells.
    """
    cell = max(round(_SKY_CELL * psf.fwhm), 8)
    rows, columns = (size // cell for size in residual.shape)
    if min(rows, columns) < 2:
        return None

    def in_cells(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        part = array[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
        return part.swapaxes(1, 2)

    def sum_cells(array: npt.NDArray[Any]) -> FloatArray:
        # One axis after the other, which is quick.
        in_rows = array[: rows * cell].reshape(rows, cell, array.shape[1]).sum(axis=1, dtype=np.float32)
        return in_rows[:, : columns * cell].reshape(rows, columns, cell).sum(axis=2, dtype=np.float64)

    count = sum_cells(good)
    filled = count > 0.3 * cell**2
    # Of the median.
    total = sum_cells(np.where(good, variance, np.float32(0.0)))
    error = 1.25 * np.sqrt(total) / np.maximum(count, 1)
    square = np.ones((3, 3), dtype=bool)
    # The mean is quick, and the few cells where it is large are looked at closely.
    candidates = filled & (np.abs(sum_cells(residual)) > 4.0 * error * count)
    candidates = filled & scipy.ndimage.binary_dilation(candidates, square)
    if not candidates.any():
        return None
    level = np.zeros((rows, columns))
    values = np.where(in_cells(good)[candidates], in_cells(residual)[candidates], np.nan)
    level[candidates] = np.nanmedian(values.reshape(len(values), -1), axis=1)
    level[~scipy.ndimage.binary_dilation(np.abs(level) > 4.0 * error, square)] = 0.0
    if not level.any():
        return None
    y, x = (
        _between_cells(size, cell, number)
        for size, number in zip(residual.shape, (rows, columns), strict=True)
    )
    return np.asarray(y @ np.ascontiguousarray((x @ level.astype(np.float32).T).T))


def _between_cells(size: int, cell: int, number: int) -> scipy.sparse.csr_array:
    """Return the weights of linear interpolation from the centers of cells to pixels, one row a pixel."""
    place = np.clip((np.arange(size) + 0.5) / cell - 0.5, 0.0, number - 1.0)
    first = np.minimum(place.astype(np.intp), number - 2)
    weights = np.stack([1.0 - (place - first), place - first], axis=1).astype(np.float32)
    columns = np.stack([first, first + 1], axis=1)
    starts = np.arange(0, 2 * size + 1, 2)
    return scipy.sparse.csr_array((weights.ravel(), columns.ravel(), starts), shape=(size, number))
