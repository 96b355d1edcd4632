"""An elliptical Moffat PSF that varies over the detector, evaluated for many sources at once.

Runs in workers.  Piff stores it: `PsfModel.to_piff` and `PsfModel.from_psf` convert.
"""

from __future__ import annotations

__all__ = (
    "FWHM_PER_SIGMA",
    "GAUSSIAN_BETA",
    "PsfModel",
    "moffat_slopes",
    "moffat_stamps",
    "polynomial_terms",
)

import dataclasses
import math
from typing import Self

import galsim
import numpy as np
import piff
from lsst.images import Bounds
from lsst.images.psfs import GaussianPointSpreadFunction, PiffWrapper, PointSpreadFunction

from . import FloatArray, IntArray
from .stamps import stamp_offsets

FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian of unit standard deviation."""

GAUSSIAN_BETA = 1000.0
"""A Moffat profile of this exponent is a Gaussian to within a thousandth of its peak."""

_LARGEST_BETA = 20.0
"""Exponent beyond which GalSim can't draw all Moffat profiles."""

_CHUNK = 200_000
"""Pixels that are evaluated at once; more would not fit the processor's cache."""


def polynomial_terms(x: FloatArray, y: FloatArray, order: int) -> FloatArray:
    """Return ``x**i * y**j`` with ``i + j <= order``, in Piff's order; shape ``(len(x), n)``."""
    terms = [x**i * y**j for i in range(order + 1) for j in range(order + 1 - i)]
    return np.stack(terms, axis=-1)


@dataclasses.dataclass(frozen=True)
class PsfModel:
    """A Moffat profile whose width and ellipticity are polynomials of the position."""

    beta: float
    """Exponent of the profile."""

    order: int
    """Order of the polynomials."""

    coefficients: FloatArray
    """Coefficients of FWHM, g1 and g2 (GalSim's reduced shear) on `polynomial_terms` of pixel positions.

    Shape ``(3, n)``.
    """

    shape: tuple[int, int]
    """Rows and columns of the image, in which the polynomials hold."""

    @classmethod
    def constant(cls, fwhm: float, shape: tuple[int, int], *, beta: float = GAUSSIAN_BETA) -> Self:
        """Return a round model that does not vary; nearly a Gaussian by default."""
        return cls(beta, 0, np.array([[fwhm], [0.0], [0.0]]), shape)

    def parameters(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return FWHM in pixels, g1 and g2 at positions; off the image they are those of its edge."""
        ny, nx = self.shape
        terms = polynomial_terms(np.clip(x, 0.0, nx - 1.0), np.clip(y, 0.0, ny - 1.0), self.order)
        fwhm, g1, g2 = (terms @ self.coefficients.T).T
        return np.maximum(fwhm, 0.3), np.clip(g1, -0.6, 0.6), np.clip(g2, -0.6, 0.6)

    def grid(self, count: int = 9) -> tuple[FloatArray, FloatArray]:
        """Return positions that are spread evenly over the image."""
        ny, nx = self.shape
        x, y = np.meshgrid(np.linspace(0, nx - 1, count), np.linspace(0, ny - 1, count))
        return x.ravel(), y.ravel()

    @property
    def fwhm(self) -> float:
        """Median full width at half maximum of the profile, without the pixels' own width."""
        return float(np.median(self.parameters(*self.grid())[0]))

    @property
    def sigma(self) -> float:
        """Standard deviation of the Gaussian that is most like the image of a star in the middle."""
        # A Gaussian's, widened by the pixel; what is beyond that follows from the wings.
        width = (self.fwhm / FWHM_PER_SIGMA) ** 2 * _wing_factor(self.beta) + 1.0 / 12.0
        return math.sqrt(width)

    def stamps(self, x: FloatArray, y: FloatArray, ix: IntArray, iy: IntArray, radius: int) -> FloatArray:
        """Return images of stars of unit total flux, integrated over the pixels, around the pixels ix, iy."""
        size = 2 * radius + 1
        result = np.empty((len(x), size, size))
        step = max(_CHUNK // size**2, 1)
        fwhm, g1, g2 = self.parameters(x, y)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            result[part] = moffat_stamps(
                (x - ix)[part], (y - iy)[part], fwhm[part], g1[part], g2[part], self.beta, radius
            )
        return result

    def central_stamp(self, radius: int) -> FloatArray:
        """Return the image of a star at a pixel in the middle of the image; shape ``(1, size, size)``."""
        ix, iy = np.array([self.shape[1] // 2]), np.array([self.shape[0] // 2])
        return self.stamps(ix.astype(np.float64), iy.astype(np.float64), ix, iy, radius)

    def enclosed(self, x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
        """Return the fraction of a star's light within a circle, by its mean width."""
        alpha = _alpha(self.parameters(x, y)[0], self.beta)
        return np.asarray(1.0 - (1.0 + (radius / alpha) ** 2) ** (1.0 - self.beta))

    def reach(self, flux: FloatArray, level: float) -> FloatArray:
        """Return the distance in pixels at which a star's light falls to ``level`` per pixel."""
        alpha = _alpha(np.asarray(self.fwhm), self.beta)
        peak = np.maximum(flux, 0.0) * (self.beta - 1.0) / (math.pi * alpha**2)
        return np.asarray(alpha * np.sqrt(np.maximum(peak / level, 1.0) ** (1.0 / self.beta) - 1.0))

    def to_piff(self, bounds: Bounds, stamp_size: int) -> PiffWrapper:
        """Return the same PSF as an object that `lsst.images` stores.

        Parameters
        ----------
        bounds
            Where it holds.
        stamp_size
            Side of its stamps, an odd number; a stamp of it sums to one.
        """
        interp = piff.BasisPolynomial(order=self.order)
        gaussian = self.beta > _LARGEST_BETA
        interp.q = self.coefficients * np.array([[_piff_size(self.beta)], [1.0], [1.0]])
        psf = piff.SimplePSF(piff.Gaussian() if gaussian else piff.Moffat(self.beta), interp)
        psf.wcs, psf.pointing, psf.stars = {0: galsim.PixelScale(1.0)}, None, []
        return PiffWrapper(psf, bounds, stamp_size)

    @classmethod
    def from_psf(cls, psf: PointSpreadFunction, shape: tuple[int, int]) -> Self:
        """Return the model of a PSF that `to_piff` made, or of a Gaussian; raise `TypeError` for others."""
        if isinstance(psf, GaussianPointSpreadFunction):
            kernel = psf.compute_kernel_image(x=0.5 * shape[1], y=0.5 * shape[0]).array
            sigma = 1.0 / math.sqrt(2.0 * math.pi * float(kernel.max() / kernel.sum()))
            return cls.constant(FWHM_PER_SIGMA * sigma, shape)
        impl = psf.piff_psf if isinstance(psf, PiffWrapper) else None
        profile = getattr(impl, "model", None)
        if impl is None or not isinstance(profile, piff.Moffat | piff.Gaussian):
            raise TypeError(f"a PSF of type {type(psf).__name__} is not one that characterize makes")
        beta = float(profile.kwargs["beta"]) if isinstance(profile, piff.Moffat) else GAUSSIAN_BETA
        coefficients = np.asarray(impl.interp.q, dtype=np.float64) / np.array(
            [[_piff_size(beta)], [1.0], [1.0]]
        )
        return cls(beta, int(impl.interp.kwargs["order"]), coefficients, shape)


def _piff_size(beta: float) -> float:
    """Return Piff's size of a profile of unit FWHM: the half-light radius, or a Gaussian's sigma."""
    if beta > _LARGEST_BETA:
        return 1.0 / FWHM_PER_SIGMA
    return float(_alpha(np.ones(1), beta)[0]) * math.sqrt(2.0 ** (1.0 / (beta - 1.0)) - 1.0)


def moffat_stamps(
    dx: FloatArray,
    dy: FloatArray,
    fwhm: FloatArray,
    g1: FloatArray,
    g2: FloatArray,
    beta: float | FloatArray,
    radius: int,
) -> FloatArray:
    """Return elliptical Moffat profiles of unit flux, integrated over the pixels by Gaussian quadrature.

    ``dx`` and ``dy`` are offsets of the centers from the central pixels.
    """
    nodes = _quadrature(fwhm)
    exponent = np.broadcast_to(np.asarray(beta, dtype=np.float64), dx.shape)[:, None, None]
    alpha = _alpha(fwhm, exponent[:, 0, 0])
    xx, xy, yy = (part[:, None, None] for part in _form(alpha, g1, g2))
    offsets = stamp_offsets(radius)
    result = np.zeros((len(dx), offsets.size, offsets.size))
    for shift_y, weight_y in nodes:
        v = (offsets[None, :] + shift_y - dy[:, None])[:, :, None]
        square = yy * v**2 + 1.0
        for shift_x, weight_x in nodes:
            u = (offsets[None, :] + shift_x - dx[:, None])[:, None, :]
            value = u * (xx * u + xy * v)
            value += square
            np.log(value, out=value)
            value *= -exponent
            np.exp(value, out=value)
            value *= weight_x * weight_y
            result += value
    result *= (exponent - 1.0) / (math.pi * (alpha**2)[:, None, None])
    return result


def moffat_slopes(
    dx: FloatArray,
    dy: FloatArray,
    fwhm: FloatArray,
    g1: FloatArray,
    g2: FloatArray,
    beta: FloatArray,
    radius: int,
) -> FloatArray:
    """Return the profiles of `moffat_stamps`, and their derivatives by dx, dy, log FWHM, g1 and g2.

    The shape is ``(n, 6, size, size)``.
    """
    alpha = _alpha(fwhm, beta)
    xx, xy, yy = (part[:, None, None] for part in _form(alpha, g1, g2))
    offsets = stamp_offsets(radius)
    # The profiles, and sums of their derivative by the quadratic form, times u, v, u^2, u v and v^2.
    sums = np.zeros((6, len(dx), offsets.size, offsets.size))
    nodes = _quadrature(fwhm)
    for shift_y, weight_y in nodes:
        v = (offsets[None, :] + shift_y - dy[:, None])[:, :, None]
        square = yy * v**2 + 1.0
        for shift_x, weight_x in nodes:
            u = (offsets[None, :] + shift_x - dx[:, None])[:, None, :]
            form = u * (xx * u + xy * v)
            form += square
            value = np.exp(-beta[:, None, None] * np.log(form))
            value *= weight_x * weight_y
            sums[0] += value
            value /= form
            for place, factor in ((1, u), (4, v)):
                part = value * factor
                sums[place] += part
                part *= factor
                sums[place + 1] += part
            value *= u
            value *= v
            sums[3] += value
    peak = (beta - 1.0) / (math.pi * alpha**2)
    sums[0] *= peak[:, None, None]
    sums[1:] *= (-beta * peak)[:, None, None]
    model, u1, u2, uv, v1, v2 = sums
    shear = 1.0 - g1**2 - g2**2
    scale = 1.0 / (shear * alpha**2)
    by_form = xx * u2 + xy * uv + yy * v2
    h1, h2, s1, s2, s3 = (
        part[:, None, None] for part in (2.0 * g1 / shear, 2.0 * g2 / shear, scale * g1, scale * g2, scale)
    )
    return np.stack(
        [
            model,
            -2.0 * xx * u1 - xy * v1,
            -2.0 * yy * v1 - xy * u1,
            -2.0 * (by_form + model),
            h1 * by_form + 2.0 * (s1 - s3) * u2 + 2.0 * (s1 + s3) * v2,
            h2 * by_form + 2.0 * s2 * (u2 + v2) - 4.0 * s3 * uv,
        ],
        axis=1,
    )


def _quadrature(fwhm: FloatArray) -> list[tuple[float, float]]:
    """Return places and weights within a pixel that integrate the narrowest of these profiles."""
    narrow = float(np.min(fwhm, initial=np.inf))
    nodes, weights = np.polynomial.legendre.leggauss(2 if narrow > 2.5 else 3 if narrow > 1.6 else 5)
    return [(0.5 * float(node), 0.5 * float(weight)) for node, weight in zip(nodes, weights, strict=True)]


def _form(alpha: FloatArray, g1: FloatArray, g2: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return factors of x^2, x y and y^2 in the square of the elliptical radius in units of alpha."""
    shear = g1**2 + g2**2
    scale = 1.0 / ((1.0 - shear) * alpha**2)
    return scale * (1.0 + shear - 2.0 * g1), -4.0 * scale * g2, scale * (1.0 + shear + 2.0 * g1)


def _alpha(fwhm: FloatArray, beta: float | FloatArray) -> FloatArray:
    return np.asarray(0.5 * fwhm / np.sqrt(np.expm1(math.log(2.0) / np.asarray(beta))))


def _wing_factor(beta: float) -> float:
    """Ratio of a Moffat's adaptive second moment to that of the Gaussian of its FWHM."""
    # Solved for by the fixed point of the adaptive moment: integrals of t * w(t) * (1 + t / a)**-beta.
    t = np.linspace(0.0, 40.0, 4001)
    alpha2 = 0.25 * FWHM_PER_SIGMA**2 / (2.0 ** (1.0 / beta) - 1.0)
    profile = (1.0 + t / alpha2) ** -beta
    moment = 1.0
    for _ in range(30):
        weight = profile * np.exp(-0.5 * t / moment)
        moment = float((t * weight).sum() / weight.sum())
    return moment
