"""Flux errors from hidden companions: fainter stars that are too close to a star to be detected beside it.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("companion_errors",)

import numpy as np
import scipy.spatial

from . import FloatArray
from .psf_model import PsfModel

_PLACES, _NEAR_PLACES = 2000, 200
"""Number of random positions on the image, and of those around a source from which its error is computed."""

_APART = 1.5
"""Distance in FWHM beyond which a companion adds hardly any light to a fitted flux."""

_SEEN = 5.0
"""Signal-to-noise ratio above which a source is detected."""

_MODEL_ERROR = 0.03
"""Error of a subtracted PSF, as a fraction of its light in each pixel."""

_COMPANION = 0.1
"""Largest flux of a companion, in units of its star's flux; a brighter one makes the star a blend."""

_OUTLIER = 2.0
"""Largest deviation that counts in full, in units of the other errors."""

_LEVELS = 24
"""Number of star fluxes for which the light of companions is summed; each star takes the nearest one."""


def companion_errors(
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    pixel_err: FloatArray,
    other_err: FloatArray,
    psf: PsfModel,
) -> FloatArray:
    """Return the errors of fluxes from fainter stars that are too close to be detected.

    By chance, as many sources lie behind a star as around a random position.  At each position, the function
    adds up the light of the sources that a star there would hide.  The error is the scatter of these sums
    among the positions around a star.  Few stars have a bright companion, but the error is to describe most
    stars; therefore large deviations are clipped.

    ``pixel_err`` comes from the noise of the pixels alone, ``other_err`` from all causes but companions.
    """
    seen = np.flatnonzero(flux > _SEEN * pixel_err)
    if seen.size < 2:
        return np.zeros(len(x))
    # The seed is fixed, so that an image that is measured again has the same errors.
    places = np.random.default_rng(1).uniform(0.0, 1.0, (_PLACES, 2)) * np.array(psf.shape[::-1]) - 0.5
    tree = scipy.spatial.cKDTree(np.column_stack([x, y])[seen])
    place_tree = scipy.spatial.cKDTree(places)
    pairs = place_tree.sparse_distance_matrix(tree, _APART * psf.fwhm, output_type="coo_matrix")
    source = seen[pairs.col]
    square = (pairs.data / psf.sigma) ** 2
    overlap = np.exp(-0.25 * square)
    added = flux[source] * overlap
    # Light of a Gaussian companion that remains after flux and position of the star are fitted to it.
    left = flux[source] * np.sqrt(np.maximum(1.0 - overlap**2 * (1.0 + 0.5 * square), 0.0))
    order = seen[np.argsort(flux[seen])]
    levels = np.geomspace(flux[order[0]], flux[order[-1]], _LEVELS)
    # Flux error of a Gaussian whose pixels have independent relative errors.
    model_err = 0.4 * _MODEL_ERROR / psf.sigma * levels
    floor = np.hypot(np.interp(levels, flux[order], pixel_err[order]), model_err)
    light = np.zeros((_LEVELS, _PLACES))
    for k in range(_LEVELS):
        hidden = (flux[source] < _COMPANION * levels[k]) & (left < _SEEN * floor[k])
        light[k] = np.bincount(pairs.row[hidden], weights=added[hidden], minlength=_PLACES)
    near = place_tree.query(np.column_stack([x, y]), k=_NEAR_PLACES)[1]
    level = np.abs(np.log(np.maximum(flux, levels[0]))[:, None] - np.log(levels)).argmin(axis=1)
    shift = light[level[:, None], near]
    shift = np.abs(shift - np.median(shift, axis=1)[:, None])
    return np.asarray(np.sqrt((np.minimum(shift, _OUTLIER * other_err[:, None]) ** 2).mean(axis=1)))
