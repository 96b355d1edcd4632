"""Measure positions, fluxes and shapes of detected sources on arrays."""

from __future__ import annotations

__all__ = (
    "Apertures",
    "PsfPhotometry",
    "aperture_fluxes",
    "fit_psf_fluxes",
    "isolated_stamps",
    "measure_psf_photometry",
    "model_radius",
    "nearest_pixel",
)

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg
import scipy.spatial

from .moments import windowed_centroids
from .stamps import PsfProfile, gather_windows, stamp_offsets

type FloatArray = npt.NDArray[np.float64]
type BoolArray = npt.NDArray[np.bool_]
type FloatImage = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class PsfPhotometry:
    """Positions and PSF fluxes, in the order of the positions given."""

    x: FloatArray
    y: FloatArray
    """Centroids in pixels."""

    x_err: FloatArray
    y_err: FloatArray
    """Their standard errors from photon and read noise, in pixels."""

    centroid_ok: BoolArray
    """`False` where the centroid ran away and the detection's peak was kept."""

    flux: FloatArray
    """PSF flux in the units of the image; no aperture correction."""

    flux_err: FloatArray

    flux_ok: BoolArray
    """`False` where too little of the source lies on good pixels."""

    blendedness: FloatArray
    """Flux of the neighbors' models under the source's PSF, as a fraction of all flux there."""

    residual: npt.NDArray[np.float32]
    """The image minus all fitted PSFs; masked pixels are zero."""


@dataclasses.dataclass(frozen=True)
class Apertures:
    """Fluxes in circular apertures; the first axis is the source, the second the radius."""

    flux: FloatArray
    flux_err: FloatArray
    truncated: BoolArray
    """Whether the aperture has masked pixels or leaves the image."""

    def without_last(self) -> Apertures:
        """Return all but the last radius."""
        return Apertures(self.flux[:, :-1], self.flux_err[:, :-1], self.truncated[:, :-1])


def measure_psf_photometry(
    image: FloatImage,
    variance: FloatImage,
    masked: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: PsfProfile,
    *,
    passes: int = 2,
) -> PsfPhotometry:
    """Fit all PSF fluxes together, center each source with its neighbors subtracted, and repeat.

    Parameters
    ----------
    image
        Sky-subtracted image, shape ``(ny, nx)``.
    variance
        Variance of its pixels.
    masked
        Pixels to ignore.
    x, y
        First positions in pixels.
    psf
        The PSF.
    passes
        Number of rounds of centroids; fluxes are fitted once more after the last.
    """
    sigma, radius = psf.sigma, model_radius(psf)
    data = np.where(masked | ~np.isfinite(image), 0.0, image).astype(np.float64)
    good = ~masked & np.isfinite(image)
    first_x, first_y = x, y
    ok = np.ones(len(x), dtype=bool)
    for _ in range(passes):
        flux, _, _, residual = fit_psf_fluxes(data, variance, good, x, y, psf, radius)
        stamps, ix, iy, dx, dy = isolated_stamps(residual, x, y, flux, psf, radius)
        dx, dy, converged = windowed_centroids(stamps, dx, dy, sigma, reach=sigma)
        ok = converged & (np.hypot(ix + dx - first_x, iy + dy - first_y) < 1.5 * sigma)
        x, y = np.where(ok, ix + dx, first_x), np.where(ok, iy + dy, first_y)
    flux, flux_err, coverage, residual = fit_psf_fluxes(data, variance, good, x, y, psf, radius)
    # For a Gaussian in background noise (King 1983, PASP 95, 163).
    with np.errstate(divide="ignore", invalid="ignore"):
        position_err = math.sqrt(2.0) * sigma * np.abs(flux_err / flux)
    return PsfPhotometry(
        x=x,
        y=y,
        x_err=position_err,
        y_err=position_err.copy(),
        centroid_ok=ok,
        flux=flux,
        flux_err=flux_err,
        flux_ok=(coverage > 0.5) & np.isfinite(flux_err),
        blendedness=_blendedness(x, y, flux, sigma),
        residual=residual.astype(np.float32),
    )


def model_radius(psf: PsfProfile) -> int:
    """Half size in pixels of the square on which a source is fitted and subtracted."""
    return math.ceil(5.0 * psf.sigma)


def fit_psf_fluxes(
    image: FloatImage,
    variance: FloatImage,
    good: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: PsfProfile,
    radius: int,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Least-squares fluxes of all sources at once, with positions held.

    All good pixels have the same weight: a fit weighted by the variance would give bright and faint stars
    different answers wherever the model is not the true PSF.

    Parameters
    ----------
    image, variance, good
        Sky-subtracted image, its variance, and which pixels to use; shape ``(ny, nx)``.
    x, y
        Positions in pixels.
    psf
        The PSF.
    radius
        Half size of the square on which a PSF is evaluated.

    Returns
    -------
    flux, flux_err
        Fluxes and their errors; NaN errors where the flux is not determined.
    coverage
        Fraction of each PSF's light that falls on good pixels.
    residual
        The image minus the models; zero where not good.
    """
    ny, nx = image.shape
    ix, iy = nearest_pixel(x, y, image.shape)
    models = psf.stamps(x - ix, y - iy, radius).reshape(len(x), (2 * radius + 1) ** 2)
    step = stamp_offsets(radius).astype(np.intp)
    columns = np.broadcast_to(ix[:, None, None] + step[None, None, :], (len(x), step.size, step.size))
    rows = np.broadcast_to(iy[:, None, None] + step[None, :, None], (len(x), step.size, step.size))
    inside = ((columns >= 0) & (columns < nx) & (rows >= 0) & (rows < ny)).reshape(models.shape)
    index = np.clip(rows, 0, ny - 1) * nx + np.clip(columns, 0, nx - 1)
    pixel = np.where(inside, index.reshape(models.shape), 0)
    used = inside & good.ravel()[pixel]
    models = np.where(used, models, 0.0)
    source = np.broadcast_to(np.arange(len(x))[:, None], pixel.shape)
    design = scipy.sparse.csr_array((models[used], (pixel[used], source[used])), shape=(ny * nx, len(x)))
    power = (models**2).sum(axis=1)
    # A trace of damping keeps sources that have no good pixel, or lie on one another, from spoiling the rest.
    damping = scipy.sparse.diags_array(1e-6 * power + 1e-12)
    normal = (design.T @ design + damping).tocsc()
    data = np.where(good, image, 0.0).ravel()
    flux = np.atleast_1d(scipy.sparse.linalg.spsolve(normal, design.T @ data)) if len(x) else np.zeros(0)
    noise = (models**2 * np.where(used, variance.ravel()[pixel], 0.0)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        flux_err = np.where(power > 0.0, np.sqrt(noise) / power, np.nan)
    residual = np.where(good.ravel(), data - design @ flux, 0.0).reshape(ny, nx)
    return flux, flux_err, models.sum(axis=1), residual


def isolated_stamps(
    residual: FloatImage, x: FloatArray, y: FloatArray, flux: FloatArray, psf: PsfProfile, radius: int
) -> tuple[FloatArray, npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray, FloatArray]:
    """Cut out each source with all others subtracted.

    Parameters
    ----------
    residual
        Image minus all models, as `fit_psf_fluxes` returns it.
    x, y, flux
        Positions and fitted fluxes.
    psf
        The PSF.
    radius
        Half size of the stamps, at least `model_radius`.

    Returns
    -------
    stamps
        Shape ``(n, 2 * radius + 1, 2 * radius + 1)``; zero off the image.
    ix, iy
        Central pixel of each stamp.
    dx, dy
        Position relative to it.
    """
    ix, iy = nearest_pixel(x, y, residual.shape)
    dx, dy = x - ix, y - iy
    stamps = gather_windows(residual.astype(np.float64), ix, iy, radius, fill=0.0)
    inner_radius = model_radius(psf)
    margin = radius - inner_radius
    inner = slice(margin, margin + 2 * inner_radius + 1)
    stamps[:, inner, inner] += flux[:, None, None] * psf.stamps(dx, dy, inner_radius)
    return stamps, ix, iy, dx, dy


def aperture_fluxes(
    stamps: FloatArray,
    variance_stamps: FloatArray,
    masked_stamps: BoolArray,
    dx: FloatArray,
    dy: FloatArray,
    radii: Sequence[float],
) -> Apertures:
    """Sum the light in circular apertures; a pixel on the rim counts by the fraction of it inside.

    Parameters
    ----------
    stamps, variance_stamps, masked_stamps
        Cut-outs of the image, its variance, and of the pixels that are masked or off the image.
    dx, dy
        Centers relative to the central pixel of each stamp.
    radii
        Radii in pixels.
    """
    offsets = stamp_offsets(stamps.shape[1] // 2)
    distance = np.hypot(
        offsets[None, None, :] - dx[:, None, None], offsets[None, :, None] - dy[:, None, None]
    )
    flux, error, truncated = [], [], []
    for radius in radii:
        # Exact for a straight rim that runs along the pixel grid, good to a per cent of a pixel otherwise.
        weight = np.clip(radius + 0.5 - distance, 0.0, 1.0)
        flux.append(np.einsum("nji,nji->n", stamps, weight))
        error.append(np.sqrt(np.einsum("nji,nji->n", variance_stamps, weight**2)))
        truncated.append((masked_stamps & (weight > 0.0)).any(axis=(1, 2)))
    return Apertures(
        flux=np.stack(flux, axis=1), flux_err=np.stack(error, axis=1), truncated=np.stack(truncated, axis=1)
    )


def nearest_pixel(
    x: FloatArray, y: FloatArray, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Column and row of the pixel of the image that is nearest to each position."""
    return (
        np.clip(np.rint(x), 0, shape[1] - 1).astype(np.intp),
        np.clip(np.rint(y), 0, shape[0] - 1).astype(np.intp),
    )


def _blendedness(x: FloatArray, y: FloatArray, flux: FloatArray, sigma: float) -> FloatArray:
    """Overlap of two Gaussians: ``exp(-d^2 / (4 sigma^2))`` of the neighbor's flux."""
    if len(x) < 2:
        return np.zeros(len(x))
    tree = scipy.spatial.cKDTree(np.column_stack([x, y]))
    pairs = tree.query_pairs(6.0 * sigma, output_type="ndarray")
    others = np.zeros(len(x))
    positive = np.maximum(flux, 0.0)
    if len(pairs):
        first, second = pairs[:, 0], pairs[:, 1]
        overlap = np.exp(-((x[first] - x[second]) ** 2 + (y[first] - y[second]) ** 2) / (4.0 * sigma**2))
        np.add.at(others, first, positive[second] * overlap)
        np.add.at(others, second, positive[first] * overlap)
    total = others + positive
    return np.divide(others, total, out=np.zeros(len(x)), where=total > 0.0)
