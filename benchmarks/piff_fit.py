"""Piff's own fit of a PSF that varies over the image (Jarvis et al. 2021), to measure with it."""

from __future__ import annotations

__all__ = ["fit_piff"]

import astropy.table
import galsim
import numpy as np
import piff
from lsst.images import VisitImage

from spark_butler.tasks.pixels.psf_model import PsfModel, polynomial_terms
from spark_butler.tasks.pixels.stamps import gather_windows

_MOST_STARS = 24
"""Stars that are fitted; Piff takes up to a second for each."""


def fit_piff(image: VisitImage, source: astropy.table.Table) -> PsfModel:
    """Fit a Moffat profile, whose size and shape are polynomials, to the brightest stars process_ccd chose.

    The exponent, which Piff does not fit, is that of process_ccd.

    Parameters
    ----------
    image
        Sky-subtracted image with the PSF of process_ccd.
    source
        Its sources, with ``psf_star``.
    """
    pixels = image.image.array
    ours = PsfModel.from_psf(image.psf, (pixels.shape[0], pixels.shape[1]))
    chosen = np.flatnonzero(source["psf_star"])
    chosen = chosen[np.argsort(-np.asarray(source["snr"])[chosen])][:_MOST_STARS]
    x, y = (np.asarray(source[name], dtype=np.float64)[chosen] for name in ("x", "y"))
    ix, iy = np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)
    radius = int(np.ceil(4.0 * ours.sigma))
    hidden = image.mask.get("BAD") | image.mask.get("COSMIC_RAY") | image.mask.get("SATURATED")
    data = gather_windows(pixels, ix, iy, radius, fill=0.0)
    weight = np.where(hidden, 0.0, 1.0 / np.maximum(image.variance.array, 1e-6))
    weights = gather_windows(weight, ix, iy, radius, fill=0.0)
    stars = []
    for k in range(len(x)):
        corner = {"xmin": int(ix[k]) - radius, "ymin": int(iy[k]) - radius, "scale": 1.0}
        cut, weight_cut = (
            galsim.Image(np.ascontiguousarray(a[k], dtype=np.float64), **corner) for a in (data, weights)
        )
        star = piff.Star(piff.StarData(cut, galsim.PositionD(x[k], y[k]), weight=weight_cut), None)
        stars.append(star)
    order = 2 if len(x) >= 24 else 1 if len(x) >= 10 else 0
    outliers = piff.ChisqOutliers(nsigma=5, max_remove=0.1)
    # With its default tolerances Piff takes minutes for the same result.
    profile = piff.Moffat(ours.beta, scipy_kwargs={"ftol": 1e-4, "xtol": 1e-4})
    psf = piff.SimplePSF(profile, piff.Polynomial(order=order), outliers)
    psf.fit(stars, {0: galsim.PixelScale(1.0)}, None)
    gx, gy = ours.grid()
    drawn = [
        psf.interpolateStar(piff.Star.makeTarget(x=a, y=b, scale=1.0)) for a, b in zip(gx, gy, strict=True)
    ]
    parameters = np.array([star.fit.params for star in drawn])
    # Piff's size is a half-light radius, which is proportional to the width.
    parameters[:, 0] *= galsim.Moffat(beta=ours.beta, half_light_radius=1.0).fwhm
    coefficients = np.linalg.lstsq(polynomial_terms(gx, gy, order), parameters, rcond=None)[0].T
    return PsfModel(ours.beta, order, coefficients, ours.shape)
