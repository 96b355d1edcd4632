"""Errors of fluxes by fainter stars that lie within the images of others and can't be told from them.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("companion_errors",)


import numpy as np
import numpy.typing as npt
import scipy.spatial

from .psf_model import PsfModel

type FloatArray = npt.NDArray[np.float64]

_PLACES, _NEAR_PLACES = 2000, 200
"""Random places for imagined stars; of these, the ones nearest to a source that tell the error there."""

_APART = 1.5
"""Distance in FWHM beyond which a companion hardly adds to the flux."""

_SEEN = 5.0
"""Signal-to-noise ratio above which a source is seen."""

_MODEL_ERROR = 0.03
"""Error of a subtracted PSF as a fraction of its light in each pixel."""

_COMPANION = 0.1
"""Largest flux of a companion, in that of its star; two stars that differ by less are a blend."""

_OUTLIER = 2.0
"""Most that a companion counts, in units of the other errors."""

_LEVELS = 24
"""Number of fluxes for which the companions are summed."""


def companion_errors(
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    pixel_err: FloatArray,
    other_err: FloatArray,
    psf: PsfModel,
) -> FloatArray:
    """Return the errors of fluxes by fainter stars that are too near to be seen.

    The sources around random places are as many as there are behind a star by chance.  Of these, the ones
    that don't stand out from the light of a star there are added up.  Few stars have a bright companion, and
    errors are to describe the many: each counts as an outlier of limited size.

    Parameters
    ----------
    x, y, flux
        Positions in pixels, and PSF fluxes.
    pixel_err
        Errors of the fluxes by the noise of the pixels.
    other_err
        Errors of the fluxes by all else.
    psf
        The PSF.
    """
    seen = np.flatnonzero(flux > _SEEN * pixel_err)
    if seen.size < 2:
        return np.zeros(len(x))
    # The same places whenever an image is measured again.
    places = np.random.default_rng(1).uniform(0.0, 1.0, (_PLACES, 2)) * np.array(psf.shape[::-1]) - 0.5
    tree = scipy.spatial.cKDTree(np.column_stack([x, y])[seen])
    place_tree = scipy.spatial.cKDTree(places)
    pairs = place_tree.sparse_distance_matrix(tree, _APART * psf.fwhm, output_type="coo_matrix")
    source = seen[pairs.col]
    square = (pairs.data / psf.sigma) ** 2
    overlap = np.exp(-0.25 * square)
    added = flux[source] * overlap
    # What is left of a Gaussian once another's flux and position are fitted to it.
    left = flux[source] * np.sqrt(np.maximum(1.0 - overlap**2 * (1.0 + 0.5 * square), 0.0))
    order = seen[np.argsort(flux[seen])]
    levels = np.geomspace(flux[order[0]], flux[order[-1]], _LEVELS)
    # The error of the model adds up over the pixels of a Gaussian.
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
