"""Calibrate instrumental fluxes against reference fluxes."""

from __future__ import annotations

__all__ = ("AB_ZERO_NJY", "ZeroPoint", "fit_zero_point")

import dataclasses
import math
from typing import Self

import numpy as np
import numpy.typing as npt

type FloatArray = npt.NDArray[np.float64]

AB_ZERO_NJY = 31.4
"""AB magnitude of one nanojansky (Oke & Gunn 1983; 3631 Jy at magnitude zero, rounded as Rubin does)."""


@dataclasses.dataclass(frozen=True)
class ZeroPoint:
    """Magnitude of a source of one instrumental unit, and the stars behind it."""

    magnitude: float
    """AB magnitude; NaN if there were too few stars."""

    error: float
    """Standard error of the magnitude."""

    scatter: float
    """Robust standard deviation of single stars in magnitudes."""

    used: npt.NDArray[np.intp]
    """Indices of the stars that survived the clipping."""

    @classmethod
    def unknown(cls) -> Self:
        """Return a zero point that calibrates nothing."""
        return cls(math.nan, math.nan, math.nan, np.zeros(0, dtype=np.intp))

    @property
    def njy_per_count(self) -> float:
        """Nanojanskys per instrumental unit."""
        return float(10.0 ** (-0.4 * (self.magnitude - AB_ZERO_NJY)))


def fit_zero_point(
    inst_flux: FloatArray,
    inst_flux_err: FloatArray,
    reference_njy: FloatArray,
    *,
    min_stars: int = 3,
    clip: float = 3.0,
    iterations: int = 5,
) -> ZeroPoint:
    """Take the sigma-clipped median of the stars' zero points.

    Parameters
    ----------
    inst_flux, inst_flux_err
        Instrumental fluxes and errors of stars.
    reference_njy
        Their reference fluxes in nanojanskys.
    min_stars
        With fewer good stars the result is NaN.
    clip
        Clipping limit in standard deviations.
    iterations
        Most clipping passes.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        each = AB_ZERO_NJY - 2.5 * np.log10(reference_njy) + 2.5 * np.log10(inst_flux)
    good = np.isfinite(each) & np.isfinite(inst_flux_err) & (inst_flux > 0.0) & (reference_njy > 0.0)
    index = np.nonzero(good)[0]
    for _ in range(iterations):
        if index.size < min_stars:
            break
        center, spread = _center_and_spread(each[index])
        kept = index[np.abs(each[index] - center) <= clip * max(spread, 1e-3)]
        if kept.size == index.size:
            break
        index = kept
    if index.size < min_stars:
        return ZeroPoint(math.nan, math.nan, math.nan, index)
    center, spread = _center_and_spread(each[index])
    # The median of Gaussian numbers has a variance larger than the mean's by pi / 2.
    error = spread * math.sqrt(0.5 * math.pi / index.size)
    return ZeroPoint(center, error, spread, index)


def _center_and_spread(values: FloatArray) -> tuple[float, float]:
    center = float(np.median(values))
    return center, 1.4826 * float(np.median(np.abs(values - center)))
