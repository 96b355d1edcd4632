"""Images of stars and galaxies, convolved with the seeing and drawn in stamps."""

from __future__ import annotations

__all__ = ("draw_sources", "moffat")

import numpy as np

BETA = 3.0
_OVERSAMPLING = 3
_GALAXY_STAMP = 64
_BATCH = 64
_EXPONENTIAL_RADII = 1.67835
"""Half-light radius of an exponential disc, in scale lengths."""


def moffat(dx: np.ndarray, dy: np.ndarray, fwhm: float) -> np.ndarray:
    """Return the surface brightness of a star of unit flux, per square pixel (Moffat 1969, beta 3)."""
    alpha2 = 0.25 * fwhm**2 / (2.0 ** (1.0 / BETA) - 1.0)
    return np.asarray((BETA - 1.0) / (np.pi * alpha2) * (1.0 + (dx**2 + dy**2) / alpha2) ** -BETA)


def draw_sources(
    image: np.ndarray,
    *,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    fwhm: float,
    radius: np.ndarray,
    axis_ratio: np.ndarray,
    angle: np.ndarray,
) -> None:
    """Add sources to an image, in place.

    Parameters
    ----------
    x, y
        Zero-based positions in pixels.  Of a source outside of the image, only the light inside is drawn.
    radius
        Half-light radius of exponential discs along the major axis, in pixels; 0 for stars.
    axis_ratio, angle
        Axis ratio of the discs, and angle of their major axes from x to y, in radians.
    """
    star = radius == 0
    for faint, half_size in ((True, 32), (False, 96)):
        chosen = np.flatnonzero(star & ((flux < 1e5) == faint))
        offsets = np.arange(-half_size, half_size + 1)
        for i in chosen:
            column, row = round(float(x[i])), round(float(y[i]))
            stamp = _over_pixels((offsets + column - x[i])[None, :], (offsets + row - y[i])[:, None], fwhm)
            _add(image, flux[i] * stamp, column - half_size, row - half_size)
    discs = np.flatnonzero(~star)
    for start in range(0, len(discs), _BATCH):
        batch = discs[start : start + _BATCH]
        stamps = _disc_stamps(x[batch], y[batch], fwhm, radius[batch], axis_ratio[batch], angle[batch])
        for i, stamp in zip(batch, stamps, strict=True):
            half_size = _GALAXY_STAMP // 2
            _add(image, flux[i] * stamp, round(float(x[i])) - half_size, round(float(y[i])) - half_size)


def _over_pixels(dx: np.ndarray, dy: np.ndarray, fwhm: float) -> np.ndarray:
    """Return the light of a star in pixels: the mean of four points, by Gaussian quadrature."""
    node = 0.5 / np.sqrt(3.0)
    points = [moffat(dx + a, dy + b, fwhm) for a in (-node, node) for b in (-node, node)]
    return np.asarray(np.mean(points, axis=0))


def _disc_stamps(
    x: np.ndarray, y: np.ndarray, fwhm: float, radius: np.ndarray, axis_ratio: np.ndarray, angle: np.ndarray
) -> np.ndarray:
    """Return convolved discs of unit flux, in stamps centered on the nearest pixel."""
    size, fine = _GALAXY_STAMP, _GALAXY_STAMP * _OVERSAMPLING
    grid = (np.arange(fine) + 0.5) / _OVERSAMPLING - 0.5 - size // 2
    dx = grid[None, None, :] - (x - np.round(x))[:, None, None]
    dy = grid[None, :, None] - (y - np.round(y))[:, None, None]
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    major = cosine * dx + sine * dy
    minor = (cosine * dy - sine * dx) / axis_ratio[:, None, None]
    profile = np.exp(-np.hypot(major, minor) * (_EXPONENTIAL_RADII / radius)[:, None, None])
    coarse = profile.reshape(-1, size, _OVERSAMPLING, size, _OVERSAMPLING).sum(axis=(2, 4))
    coarse /= coarse.sum(axis=(1, 2), keepdims=True)
    offset = np.arange(size) - size // 2
    psf = np.fft.ifftshift(_over_pixels(offset[None, :], offset[:, None], fwhm))
    return np.fft.irfft2(np.fft.rfft2(coarse) * np.fft.rfft2(psf), s=(size, size))


def _add(image: np.ndarray, stamp: np.ndarray, x0: int, y0: int) -> None:
    ny, nx = image.shape
    height, width = stamp.shape
    left, right, bottom, top = max(x0, 0), min(x0 + width, nx), max(y0, 0), min(y0 + height, ny)
    if left < right and bottom < top:
        image[bottom:top, left:right] += stamp[bottom - y0 : top - y0, left - x0 : right - x0]
