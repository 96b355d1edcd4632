"""Measure positions, fluxes and shapes of detected sources on arrays.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "Apertures",
    "FluxFit",
    "PsfPhotometry",
    "aperture_fluxes",
    "fit_psf_fluxes",
    "isolated_stamps",
    "measure_psf_photometry",
    "model_radius",
)

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import scipy.spatial

from . import BoolArray, FloatArray, FloatImage, Image32, IntArray
from .background import structured_sky
from .flux_errors import (
    blend_factors,
    companion_errors,
    measure_blank_sky,
    misfit_factors,
    number_pixels,
    source_pixels,
)
from .psf_model import PsfModel
from .stamps import gather_windows, nearest_pixel, stamp_offsets, windowed_centroids

_UNDERSAMPLED = 2.0
"""FWHM in pixels below which pixels shift centroids."""


@dataclasses.dataclass(frozen=True)
class PsfPhotometry:
    """Positions and PSF fluxes, in the order of the positions given."""

    x: FloatArray
    y: FloatArray
    """Centroids in pixels."""

    x_err: FloatArray
    y_err: FloatArray
    """Their standard errors in pixels, with those from neighbors and misfits of the PSF."""

    centroid_ok: BoolArray
    """`False` where the centroid diverged and the detection's peak was kept."""

    flux: FloatArray
    """PSF flux in the units of the image; no aperture correction."""

    flux_err: FloatArray
    """Errors, with those from the sky, neighbors, misfits of the PSF and hidden companions."""

    noise_err: FloatArray
    """Errors of single point sources from the noise between the sources alone."""

    pixel_err: FloatArray
    """Errors from the variance of the pixels alone."""

    flux_ok: BoolArray
    """`False` where too little of the source lies on good pixels."""

    blendedness: FloatArray
    """Flux of the neighbors' models under the source's PSF, as a fraction of all flux there."""

    reach: IntArray
    """Half size in pixels of the square on which each source was fitted."""

    residual: Image32
    """The image minus all fitted PSFs; masked pixels are zero."""

    sky: Image32
    """Background of PSF fluxes: nebulae that are smaller than the cells of the sky."""


@dataclasses.dataclass(frozen=True)
class Apertures:
    """Fluxes in circular apertures; the first axis is the source, the second the radius."""

    flux: FloatArray
    flux_err: FloatArray
    truncated: BoolArray
    """Whether the aperture has masked pixels or leaves the image."""


def measure_psf_photometry(
    image: FloatImage,
    variance: FloatImage,
    masked: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: PsfModel,
    *,
    passes: int = 2,
) -> PsfPhotometry:
    """Fit all PSF fluxes together, center each source with its neighbors subtracted, and repeat.

    Parameters
    ----------
    image, variance
        Sky-subtracted image, shape ``(ny, nx)``, and the variance of its pixels.
    masked
        Pixels to ignore.
    x, y
        First positions in pixels.
    passes
        Number of rounds of centroids; fluxes are fitted once more after the last.
    """
    sigma, radius = psf.sigma, model_radius(psf)
    good = ~masked & np.isfinite(image)
    data = np.where(good, image, np.float32(0.0)).astype(np.float32, copy=False)
    # A source's wings are fitted out to where they vanish in the noise.
    sample = variance[::3, ::3][good[::3, ::3]]
    noise = 0.3 * math.sqrt(max(float(np.median(sample)) if sample.size else 0.0, 1e-6))
    reach = np.full(len(x), radius)
    first_x, first_y = x, y
    ok = np.ones(len(x), dtype=bool)
    sky: Image32 | float = 0.0
    for _ in range(passes):
        fit = fit_psf_fluxes(data, variance, good, x, y, psf, reach)
        more = structured_sky(fit.residual, variance, good, psf)
        if more is not None:
            data, sky = np.where(good, data - more, np.float32(0.0)), sky + more
        stamps, ix, iy, dx, dy = isolated_stamps(fit.residual, x, y, fit.flux, psf, radius, reach)
        dx, dy, converged = windowed_centroids(stamps, dx, dy, sigma, reach=sigma)
        if psf.fwhm < _UNDERSAMPLED:
            # Its centroid is drawn to the middle of the pixel, as much as that of the PSF's image there.
            models = psf.stamps(ix + dx, iy + dy, ix, iy, radius)
            drawn_x, drawn_y, _ = windowed_centroids(models, dx, dy, sigma)
            dx, dy = 2.0 * dx - drawn_x, 2.0 * dy - drawn_y
        ok = converged & (np.hypot(ix + dx - first_x, iy + dy - first_y) < 1.5 * sigma)
        x, y = np.where(ok, ix + dx, first_x), np.where(ok, iy + dy, first_y)
        reach = _reach(psf, fit.flux, noise, radius)
    fit = fit_psf_fluxes(data, variance, good, x, y, psf, reach)
    excess, typical = measure_blank_sky(fit.residual, variance, good, x, y, psf).around(x, y)
    single = np.sqrt(fit.flux_err**2 + excess * fit.sky_err**2)
    factors = blend_factors(x, y, fit.flux, variance, good, psf)
    misfit = misfit_factors(fit.residual, variance, good, x, y, fit.flux, psf, typical)
    other = single * factors[0] * misfit
    # For a Gaussian in background noise (King 1983, PASP 95, 163); an error of the sky moves no centroid.
    with np.errstate(divide="ignore", invalid="ignore"):
        position_err = math.sqrt(2.0) * sigma * np.abs(fit.flux_err / fit.flux)
    return PsfPhotometry(
        x=x,
        y=y,
        x_err=position_err * factors[1] * misfit,
        y_err=position_err * factors[2] * misfit,
        centroid_ok=ok,
        flux=fit.flux,
        flux_err=np.hypot(other, companion_errors(x, y, fit.flux, fit.flux_err, other, psf)),
        noise_err=single,
        pixel_err=fit.flux_err,
        flux_ok=(fit.coverage > 0.5) & np.isfinite(fit.flux_err),
        blendedness=_blendedness(x, y, fit.flux, sigma),
        reach=reach,
        residual=np.where(good, fit.residual + sky, np.float32(0.0)) if np.ndim(sky) else fit.residual,
        sky=np.broadcast_to(np.asarray(sky, dtype=np.float32), data.shape),
    )


def model_radius(psf: PsfModel) -> int:
    """Return the half size in pixels of the square on which a faint source is fitted and subtracted."""
    return max(math.ceil(2.2 * psf.fwhm), 3)


def _reach(psf: PsfModel, flux: FloatArray, noise: float, radius: int) -> IntArray:
    """Return the half sizes of the squares on which sources are fitted: one, two or four times ``radius``."""
    wings = psf.reach(flux, noise)
    return np.where(wings > 2.0 * radius, 4 * radius, np.where(wings > radius, 2 * radius, radius))


@dataclasses.dataclass(frozen=True)
class FluxFit:
    """Fluxes of all sources of an image."""

    flux: FloatArray
    flux_err: FloatArray
    """Errors by the variance of the pixels, neighbors held; NaN where the flux is not determined."""

    sky_err: FloatArray
    """The part of the errors that is not the photon noise of the source itself."""

    coverage: FloatArray
    """Fraction of each PSF's light that falls on good pixels."""

    residual: Image32
    """The image minus the models; zero where not good."""


def fit_psf_fluxes(
    image: FloatImage,
    variance: FloatImage,
    good: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: PsfModel,
    reach: IntArray,
) -> FluxFit:
    """Return least-squares fluxes of all sources at once, with positions held.

    All good pixels have the same weight: a fit weighted by the variance would give bright and faint stars
    different answers wherever the model is not the true PSF.

    Parameters
    ----------
    image, variance, good
        Sky-subtracted image, zero where not good; its variance, and which pixels to use; shape ``(ny, nx)``.
    x, y
        Positions in pixels.
    reach
        Half size of the square on which each PSF is evaluated.
    """
    parts = [
        _models(x, y, good, psf, np.nonzero(reach == radius)[0], int(radius)) for radius in np.unique(reach)
    ]
    value, pixel, source = (
        np.concatenate([part[k] for part in parts]) if parts else np.zeros(0, dtype=np.intp) for k in range(3)
    )
    used, row = number_pixels(pixel, image.size)
    design = scipy.sparse.csr_array((value, (row, source)), shape=(used.size, len(x)))
    power = np.bincount(source, weights=value**2, minlength=len(x))
    data = image.ravel()[used].astype(np.float64)
    flux, flux_err, sky_err = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x))
    if len(x):
        # A trace of damping keeps sources that have no good pixel, or lie on one another, from spoiling the
        # rest.
        damping = scipy.sparse.diags_array(1e-6 * power + 1e-12)
        normal = (design.T @ design + damping).tocsc()
        flux = np.atleast_1d(scipy.sparse.linalg.spsolve(normal, design.T @ data))
        noise = np.bincount(source, weights=value**2 * variance.ravel()[pixel], minlength=len(x))
        photons = np.maximum(flux, 0.0) * np.bincount(source, weights=value**3, minlength=len(x))
        with np.errstate(divide="ignore", invalid="ignore"):
            flux_err, sky_err = (
                np.where(power > 0.0, np.sqrt(part) / power, np.nan)
                for part in (noise, np.maximum(noise - photons, 0.0))
            )
    residual = np.array(image, dtype=np.float32)
    residual.ravel()[used] = data - design @ flux
    return FluxFit(flux, flux_err, sky_err, np.bincount(source, weights=value, minlength=len(x)), residual)


def _models(
    x: FloatArray, y: FloatArray, good: BoolArray, psf: PsfModel, chosen: IntArray, radius: int
) -> tuple[FloatArray, IntArray, IntArray]:
    """Return the values of the chosen sources' PSFs on good pixels, their pixels and their sources."""
    ix, iy = nearest_pixel(x[chosen], y[chosen], good.shape)
    models = psf.stamps(x[chosen], y[chosen], ix, iy, radius)
    pixel, used = source_pixels(ix, iy, good, radius)
    source = np.broadcast_to(chosen[:, None, None], used.shape)
    return models[used], pixel[used], source[used]


def isolated_stamps(
    residual: FloatImage,
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    psf: PsfModel,
    radius: int,
    reach: IntArray,
) -> tuple[FloatArray, IntArray, IntArray, FloatArray, FloatArray]:
    """Cut out each source with all others subtracted.

    Parameters
    ----------
    residual
        Image minus all models, as `fit_psf_fluxes` returns it.
    x, y, flux
        Positions and fitted fluxes.
    radius
        Half size of the stamps.
    reach
        Half size of the square on which each source was fitted.

    Returns
    -------
    stamps
        Shape ``(n, 2 * radius + 1, 2 * radius + 1)``; zero off the image.
    ix, iy, dx, dy
        Central pixel of each stamp, and the position relative to it.
    """
    ix, iy = nearest_pixel(x, y, residual.shape)
    stamps = gather_windows(residual, ix, iy, radius, fill=0.0).astype(np.float64)
    distance = np.abs(stamp_offsets(radius))
    fitted = np.maximum(distance[:, None], distance[None, :])[None] <= reach[:, None, None]
    stamps += flux[:, None, None] * np.where(fitted, psf.stamps(x, y, ix, iy, radius), 0.0)
    return stamps, ix, iy, x - ix, y - iy


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
