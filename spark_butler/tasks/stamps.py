"""Square cut-outs around many positions at once, as one array."""

from __future__ import annotations

__all__ = ("FloatArray", "gather_windows", "gaussian_stamps", "stamp_offsets")

from typing import Any

import numpy as np
import numpy.typing as npt

type FloatArray = npt.NDArray[np.floating[Any]]


def gather_windows[T: np.generic](
    array: npt.NDArray[T], x: npt.NDArray[np.intp], y: npt.NDArray[np.intp], radius: int, *, fill: Any = None
) -> npt.NDArray[T]:
    """Copy the square windows centred on the given pixels.

    Parameters
    ----------
    array
        Image, shape ``(ny, nx)``.
    x, y
        Column and row of the centres, inside the image.
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
    """Pixel offsets from the centre along one axis of a window of this radius."""
    return np.arange(-radius, radius + 1, dtype=np.float64)


def gaussian_stamps(
    dx: npt.NDArray[np.float64], dy: npt.NDArray[np.float64], sigma: float, radius: int
) -> npt.NDArray[np.float64]:
    """Evaluate a circular Gaussian of unit flux at pixel centres, one stamp per position.

    Parameters
    ----------
    dx, dy
        Position of each source relative to the central pixel of its stamp, in pixels.
    sigma
        Standard deviation in pixels.
    radius
        Half size of the stamps.

    Returns
    -------
    stamps
        Array of shape ``(len(dx), 2 * radius + 1, 2 * radius + 1)``; each sums to one, as
        `lsst.images.psfs.GaussianPointSpreadFunction` normalizes it.
    """
    offsets = stamp_offsets(radius)
    profile_x = np.exp(-0.5 * ((offsets[None, :] - dx[:, None]) / sigma) ** 2)
    profile_y = np.exp(-0.5 * ((offsets[None, :] - dy[:, None]) / sigma) ** 2)
    profile_x /= profile_x.sum(axis=1, keepdims=True)
    profile_y /= profile_y.sum(axis=1, keepdims=True)
    return profile_y[:, :, None] * profile_x[:, None, :]
