"""Square cut-outs around many positions at once, as one array."""

from __future__ import annotations

__all__ = ("gather_windows", "stamp_offsets")

from typing import Any

import numpy as np
import numpy.typing as npt


def gather_windows[T: np.generic](
    array: npt.NDArray[T], x: npt.NDArray[np.intp], y: npt.NDArray[np.intp], radius: int, *, fill: Any = None
) -> npt.NDArray[T]:
    """Copy the square windows centerd on the given pixels.

    Parameters
    ----------
    array
        Image, shape ``(ny, nx)``.
    x, y
        Column and row of the centers, inside the image.
    radius
        Half size: windows are ``2 * radius + 1`` pixels wide.
    fill
        Value of window pixels that fall off the image; by default the image is mirrored at its edge.

    Returns
    -------
    windows
        Array of shape ``(len(x), 2 * radius + 1, 2 * radius + 1)``.
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


def _mirrored(index: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.intp]:
    index = np.abs(index)
    return np.asarray(np.clip(np.where(index > size - 1, 2 * (size - 1) - index, index), 0, size - 1))


def stamp_offsets(radius: int) -> npt.NDArray[np.float64]:
    """Pixel offsets from the center along one axis of a window of this radius."""
    return np.arange(-radius, radius + 1, dtype=np.float64)
