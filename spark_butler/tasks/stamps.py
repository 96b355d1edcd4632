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
    if fill is None:
        padded = np.pad(array, radius, mode="reflect")
    else:
        padded = np.pad(array, radius, mode="constant", constant_values=fill)
    size = 2 * radius + 1
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return np.ascontiguousarray(view[y, x])


def stamp_offsets(radius: int) -> npt.NDArray[np.float64]:
    """Pixel offsets from the center along one axis of a window of this radius."""
    return np.arange(-radius, radius + 1, dtype=np.float64)
