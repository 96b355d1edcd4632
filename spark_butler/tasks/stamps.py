"""Square cut-outs around many positions at once, as one array."""

from __future__ import annotations

__all__ = ("PsfProfile", "gather_windows", "stamp_offsets")

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt


def gather_windows[T: np.generic](
    array: npt.NDArray[T], x: npt.NDArray[np.intp], y: npt.NDArray[np.intp], radius: int, *, fill: Any = None
) -> npt.NDArray[T]:
    """Copy the square windows centered on the given pixels.

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


@dataclasses.dataclass(frozen=True)
class PsfProfile:
    """A round PSF: concentric Gaussians, of unit flux in all."""

    components: tuple[tuple[float, float], ...]
    """Fraction of the flux and standard deviation in pixels of each Gaussian."""

    sigma: float
    """Standard deviation in pixels of the one Gaussian that is most like the PSF."""

    @classmethod
    def gaussian(cls, sigma: float) -> PsfProfile:
        """Return a profile of one Gaussian."""
        return cls(((1.0, sigma),), sigma)

    def __call__(self, radius: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Flux per pixel at a distance in pixels from the center."""
        value = np.zeros_like(radius)
        for fraction, sigma in self.components:
            value += fraction / (2.0 * np.pi * sigma**2) * np.exp(-0.5 * (radius / sigma) ** 2)
        return value

    def stamps(
        self, dx: npt.NDArray[np.float64], dy: npt.NDArray[np.float64], radius: int
    ) -> npt.NDArray[np.float64]:
        """Evaluate the PSF at pixel centers, one stamp per position.

        Parameters
        ----------
        dx, dy
            Position of each source relative to the central pixel of its stamp, in pixels.
        radius
            Half size of the stamps.

        Returns
        -------
        stamps
            Array of shape ``(len(dx), 2 * radius + 1, 2 * radius + 1)``.
        """
        offsets = stamp_offsets(radius)
        result = np.zeros((len(dx), offsets.size, offsets.size))
        for fraction, sigma in self.components:
            profile_x = np.exp(-0.5 * ((offsets[None, :] - dx[:, None]) / sigma) ** 2)
            profile_y = np.exp(-0.5 * ((offsets[None, :] - dy[:, None]) / sigma) ** 2)
            result += (fraction / (2.0 * np.pi * sigma**2)) * (profile_y[:, :, None] * profile_x[:, None, :])
        return result
