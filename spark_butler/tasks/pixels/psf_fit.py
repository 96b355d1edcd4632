"""Fit the PSF, as it varies over the detector, to bright and isolated stars.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("PsfFit", "fit_psf", "stamp_radius")

import dataclasses
import math

import numpy as np

from . import BoolArray, FloatArray, FloatImage, IntArray
from .psf_model import FWHM_PER_SIGMA, GAUSSIAN_BETA, PsfModel, moffat_slopes, moffat_stamps, polynomial_terms
from .robust import (
    MAD_TO_SIGMA,
    fit_linear,
    half_sample_mode,
    intrinsic_scatter,
    lowest_sufficient,
    robust_sigma,
    weighted_median,
)
from .stamps import gather_windows

_MODEL_ERROR = 0.003
"""Error of the model as a fraction of a star's peak, so that cores count for more than wings."""

_INVERSE_BETA = (1.0 / GAUSSIAN_BETA, 1.0 / 1.6)

_STEPS, _SETTLED = 20, 1e-3
"""Most steps of the fit of a star, and the change of its parameters at which it has settled."""


@dataclasses.dataclass(frozen=True)
class PsfFit:
    """A PSF and how well it describes its stars."""

    model: PsfModel
    used: IntArray
    """Indices of the candidates that the PSF comes from."""

    scatter: float
    """Robust standard deviation of the stars' widths about the model, as a fraction."""

    residual: float
    """Light in the cores of the stars' stacked residuals, absolute values, as a fraction of their light."""

    reserved: IntArray
    """Indices of the candidates that were left out of the fit and are stars by it."""


@dataclasses.dataclass
class _Stars:
    """Parameters of single stars; the last axis of ``values`` is dx, dy, log FWHM, g1, g2, 1 / beta."""

    values: FloatArray
    flux: FloatArray
    errors: FloatArray
    chi2: FloatArray


def fit_psf(  # noqa: PLR0913
    image: FloatImage,
    sky: FloatImage,
    masked: BoolArray,
    x: FloatArray,
    y: FloatArray,
    sigma: float,
    *,
    max_order: int = 2,
    min_stars: int = 3,
    stamps: FloatArray | None = None,
    reserved: BoolArray | None = None,
) -> PsfFit | None:
    """Fit a Moffat to each star, and polynomials to the widths and ellipticities of those that agree.

    The result is `None` where too few stars agree.

    Parameters
    ----------
    sky
        Variance of the sky and the read-out.
    sigma
        Typical width of the candidates' images.
    max_order
        Largest order of the polynomials; a term takes four stars.
    stamps
        Cut-outs of the candidates with other sources subtracted, of half size `stamp_radius`; by default
        those of the image.
    reserved
        Which candidates are left out of the fit, to judge it.
    """
    if len(x) < min_stars:
        return None
    radius = stamp_radius(sigma)
    ix, iy = np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)
    good = np.isfinite(image) & ~masked
    weights = gather_windows(good, ix, iy, radius, fill=False)
    data = stamps
    if data is None:
        data = gather_windows(np.where(good, image, 0.0).astype(np.float64), ix, iy, radius, fill=0.0)
    floor = gather_windows(np.asarray(sky, dtype=np.float64), ix, iy, radius)
    start = np.tile([0.0, 0.0, math.log(max(FWHM_PER_SIGMA * 0.95 * sigma, 0.8)), 0.0, 0.0, 0.3], (len(x), 1))
    start[:, 0], start[:, 1] = x - ix, y - iy
    stars = _fit_stars(data, floor, weights, start, free=6)
    offered = np.ones(len(x), dtype=bool) if reserved is None else ~reserved
    usable = _plausible(stars, sigma) & offered
    if np.count_nonzero(usable) < min_stars:
        return None
    # Of each order.
    terms = [polynomial_terms(x / image.shape[1], y / image.shape[0], order) for order in range(3)]
    chosen = usable & _agree(stars, usable, terms, order=0)
    # The wings are the same everywhere, and best known from all stars together.
    beta = 1.0 / weighted_median(stars.values[chosen, 5], (1.0 / stars.errors[chosen, 5]) ** 2)
    stars.values[:, 5] = 1.0 / beta
    stars = _fit_stars(data, floor, weights, stars.values, free=5)
    plausible = _plausible(stars, sigma)
    usable = plausible & offered
    order = 0
    for _ in range(3):
        if np.count_nonzero(usable) < min_stars:
            return None
        order = min(max_order, _affordable(int(np.count_nonzero(usable))))
        usable = _agree(stars, usable, terms, order)
    if np.count_nonzero(usable) < min_stars:
        return None
    order = _best_order(stars, usable, terms, max_order)
    coefficients = _polynomials(stars, usable, terms[order], image.shape, order)
    model = PsfModel(beta, order, coefficients, (image.shape[0], image.shape[1]))
    spare = plausible & ~offered & _follow(model, stars, usable, x, y)
    return _judge(model, stars, data, x, y, np.nonzero(usable)[0], np.nonzero(spare)[0])


def stamp_radius(sigma: float) -> int:
    """Return the half size in pixels of the squares that a PSF is fitted on, from its width."""
    return max(math.ceil(4.0 * sigma), 3)


def _affordable(count: int) -> int:
    """Return the largest order that so many stars allow."""
    return 2 if count >= 24 else 1 if count >= 10 else 0


def _best_order(stars: _Stars, used: BoolArray, terms: list[FloatArray], max_order: int) -> int:
    """Return the lowest order that predicts stars left out of the fit as well as any higher one."""
    values, errors = stars.values[used, 2:5], np.hypot(stars.errors[used, 2:5], 0.01)
    count = len(values)
    orders = range(min(max_order, _affordable(int(0.8 * count))) + 1)
    # Stars are dealt by chance, not by brightness or place.
    fold = np.random.default_rng(1).permutation(count) % 5
    misfit = np.zeros((len(orders), count))
    for order in orders:
        known = terms[order][used]
        for k in range(5 if len(orders) > 1 else 0):
            out = fold == k
            for j in range(3):
                solution = fit_linear(known[~out], values[~out, j], errors[~out, j])
                deviation = (values[out, j] - known[out] @ solution) / errors[out, j]
                misfit[order, out] += np.minimum(deviation**2, 9.0)
    return lowest_sufficient(misfit)


def _judge(
    model: PsfModel,
    stars: _Stars,
    data: FloatArray,
    x: FloatArray,
    y: FloatArray,
    index: IntArray,
    spare: IntArray,
) -> PsfFit:
    """Compare the model with its stars, which ``index`` chooses."""
    radius = data.shape[1] // 2
    ix, iy = np.rint(x[index]).astype(np.intp), np.rint(y[index]).astype(np.intp)
    px, py = ix + stars.values[index, 0], iy + stars.values[index, 1]
    expected = model.stamps(px, py, ix, iy, radius)
    flux = (expected * data[index]).sum(axis=(1, 2)) / (expected**2).sum(axis=(1, 2))
    ratio = np.exp(stars.values[index, 2]) / model.parameters(x[index], y[index])[0]
    # The brighter a star, the better its residual is known.
    stack = (data[index] - flux[:, None, None] * expected).sum(axis=0) / flux.sum()
    offsets = np.arange(-radius, radius + 1)
    core = np.hypot(offsets[:, None], offsets[None, :]) <= 1.2 * model.fwhm + 1.0
    return PsfFit(
        model=model,
        used=index,
        scatter=robust_sigma(ratio - np.median(ratio)),
        residual=float(np.abs(stack[core]).sum()),
        reserved=spare,
    )


def _fit_stars(data: FloatArray, floor: FloatArray, good: BoolArray, start: FloatArray, free: int) -> _Stars:
    """Fit the first ``free`` parameters and the flux of each star by Gauss-Newton steps, all at once."""
    radius = data.shape[1] // 2
    low = np.array([-2.5, -2.5, math.log(0.6), -0.6, -0.6, _INVERSE_BETA[0]])
    high = np.array([2.5, 2.5, math.log(4.0 * radius), 0.6, 0.6, _INVERSE_BETA[1]])
    limit = np.array([0.5, 0.5, 0.3, 0.15, 0.15, 0.15])
    values = np.clip(start, low, high)
    normal, weight = np.empty((len(data), free + 1, free + 1)), np.empty(data.shape)
    moving = np.arange(len(data))
    for _ in range(_STEPS):
        slopes = _slopes(values[moving], radius, free)
        flux = _fluxes(data[moving], slopes[:, 0], good[moving])
        light = flux[:, None, None] * slopes[:, 0]
        error = _MODEL_ERROR * light.max(axis=(1, 2), keepdims=True)
        expected = floor[moving] + np.maximum(light, 0.0) + error**2
        weight[moving] = np.where(good[moving], 1.0 / expected, 0.0)
        slopes[:, 1:] *= flux[:, None, None, None]
        jacobian = slopes.reshape(len(moving), free + 1, -1)
        weighted = jacobian * weight[moving].reshape(len(moving), 1, -1)
        matrix = weighted @ jacobian.transpose(0, 2, 1)
        right = (weighted @ (data[moving] - light).reshape(len(moving), -1, 1))[..., 0]
        diagonal = np.einsum("nii->ni", matrix)
        # A trace of damping keeps stars alive that determine nothing.
        diagonal += 1e-6 * diagonal + 1e-30
        normal[moving] = matrix
        change = np.linalg.solve(matrix, right[..., None])[..., 0][:, 1:]
        change = np.clip(change, -limit[:free], limit[:free])
        values[moving, :free] = np.clip(values[moving, :free] + change, low[:free], high[:free])
        moving = moving[np.abs(change).max(axis=1) >= _SETTLED]
        if not moving.size:
            break
    model = _moffats(values, radius)
    flux = _fluxes(data, model, good)
    covariance = np.linalg.inv(normal)
    errors = np.full(values.shape, np.inf)
    errors[:, :free] = np.sqrt(np.maximum(np.einsum("nii->ni", covariance)[:, 1:], 1e-12))
    residual = (data - flux[:, None, None] * model) ** 2 * weight
    chi2 = residual.sum(axis=(1, 2)) / np.maximum(good.sum(axis=(1, 2)) - free - 1, 1)
    return _Stars(values, flux, errors, chi2)


def _moffats(values: FloatArray, radius: int) -> FloatArray:
    dx, dy, width, g1, g2, inverse = values.T
    return moffat_stamps(dx, dy, np.exp(width), g1, g2, 1.0 / inverse, radius)


def _slopes(values: FloatArray, radius: int, free: int) -> FloatArray:
    """Return the profiles and their derivatives by the first ``free`` parameters, 5 or 6."""
    dx, dy, width, g1, g2, inverse = values.T
    slopes = moffat_slopes(dx, dy, np.exp(width), g1, g2, 1.0 / inverse, radius)
    if free == 5:
        return slopes
    moved = values.copy()
    # Towards the middle of the range, so that no step leaves it.
    step = np.where(inverse + 0.01 > _INVERSE_BETA[1], -0.01, 0.01)
    moved[:, 5] += step
    last = (_moffats(moved, radius) - slopes[:, 0]) / step[:, None, None]
    return np.concatenate([slopes, last[:, None]], axis=1)


def _fluxes(data: FloatArray, model: FloatArray, good: BoolArray) -> FloatArray:
    visible = np.where(good, model, 0.0)
    return np.asarray(
        (visible * data).sum(axis=(1, 2)) / np.maximum((visible**2).sum(axis=(1, 2)), 1e-30), dtype=np.float64
    )


def _plausible(stars: _Stars, sigma: float) -> BoolArray:
    """Return which fits are those of single objects near their positions."""
    dx, dy, width = stars.values[:, 0], stars.values[:, 1], np.exp(stars.values[:, 2])
    shear = np.hypot(stars.values[:, 3], stars.values[:, 4])
    near = np.hypot(dx, dy) < 1.0 + sigma
    ok = near & (stars.flux > 0.0) & (width < 8.0 * sigma) & (shear < 0.55) & np.isfinite(stars.chi2)
    if ok.any():
        ok &= stars.chi2 < 3.0 * max(float(np.median(stars.chi2[ok])), 1.0) + 1.0
    return np.asarray(ok)


def _agree(stars: _Stars, usable: BoolArray, terms: list[FloatArray], order: int) -> BoolArray:
    """Return which stars lie on the polynomials that most of them follow."""
    values = stars.values[:, 2:5]
    kept = usable & _consensus(terms[1], values[:, 0], stars.errors[:, 2], usable)
    tolerance = np.maximum(0.02, 2.0 * np.minimum(stars.errors[:, 2:5], 0.1))
    for _ in range(8):
        if np.count_nonzero(kept) < 3:
            break
        fitted = terms[min(order, _affordable(int(np.count_nonzero(kept))))]
        off = np.zeros(len(values))
        for k in range(3):
            solution = fit_linear(fitted[kept], values[kept, k], stars.errors[kept, 2 + k])
            deviation = np.abs(values[:, k] - fitted @ solution)
            allowed = np.maximum(3.5 * robust_sigma(deviation[kept]), tolerance[:, k])
            off = np.maximum(off, deviation / allowed)
        before, kept = kept, usable & (off < 1.0)
        if (before == kept).all():
            break
    return kept


def _follow(model: PsfModel, stars: _Stars, used: BoolArray, x: FloatArray, y: FloatArray) -> BoolArray:
    """Return which stars have the width and the ellipticity of the PSF, as closely as those that it used."""
    fwhm, g1, g2 = model.parameters(x, y)
    deviation = np.abs(stars.values[:, 2:5] - np.column_stack([np.log(fwhm), g1, g2]))
    spread = MAD_TO_SIGMA * np.median(deviation[used], axis=0)
    tolerance = np.maximum(0.02, 2.0 * np.minimum(stars.errors[:, 2:5], 0.1))
    return np.asarray((deviation < np.maximum(3.5 * spread, tolerance)).all(axis=1))


def _consensus(terms: FloatArray, width: FloatArray, errors: FloatArray, usable: BoolArray) -> BoolArray:
    """Return which logarithmic widths lie on the plane that most stars agree on (Fischler & Bolles 1981).

    Galaxies, however many, don't agree with one another.
    """
    index = np.nonzero(usable)[0]
    tolerance = np.maximum(0.03, 2.0 * np.minimum(errors, 0.1))
    level = half_sample_mode(np.sort(width[index]))
    best = np.abs(width - level) < tolerance
    if index.size < 10:
        return np.asarray(np.abs(width - level) < np.maximum(3.0 * tolerance, 0.15))
    trials = np.random.default_rng(1).choice(index, (600, 3))
    corners = terms[trials]
    trials = trials[np.abs(np.linalg.det(corners)) > 0.02]
    planes = np.linalg.solve(terms[trials], width[trials][..., None])[..., 0]
    # A PSF may change by half over a detector, hardly by more.
    planes = planes[np.abs(planes[:, 1:]).max(axis=1) < 0.8]
    agreeing = np.abs(width[None, index] - planes @ terms[index].T) < tolerance[index]
    # A plane must beat the constant by more than chance.
    votes = agreeing.sum(axis=1)
    if votes.size and votes.max() > np.count_nonzero(best & usable) + 3:
        plane = planes[int(np.argmax(votes))]
        best = np.abs(width - terms @ plane) < 2.0 * tolerance
    return np.asarray(best)


def _polynomials(
    stars: _Stars, used: BoolArray, terms: FloatArray, shape: tuple[int, ...], order: int
) -> FloatArray:
    """Return coefficients of FWHM, g1 and g2 on the powers of pixel positions."""
    scaled = terms[used]
    powers = polynomial_terms(np.array([1.0 / shape[1]]), np.array([1.0 / shape[0]]), order)[0]
    values, errors = stars.values[used, 2:5], stars.errors[used, 2:5]
    typical = float(np.median(np.exp(values[:, 0])))
    values = np.column_stack([np.exp(values[:, 0]) / typical, values[:, 1:]])
    rows = []
    for value, error in zip(values.T, errors.T, strict=True):
        first = fit_linear(scaled, value, error)
        scatter = intrinsic_scatter(value - scaled @ first, error, scaled.shape[1])
        rows.append(fit_linear(scaled, value, error, scatter=scatter))
    return np.asarray(np.stack(rows) * powers * np.array([[typical], [1.0], [1.0]]))
