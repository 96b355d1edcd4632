"""Robust statistics that tolerate outliers, and the choice of values that a fit leaves out.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "MAD_TO_SIGMA",
    "choose_reserved",
    "fit_linear",
    "fit_slope",
    "half_sample_mode",
    "intrinsic_scatter",
    "lowest_sufficient",
    "robust_sigma",
    "weighted_median",
)

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import BoolArray, FloatArray

MAD_TO_SIGMA = 1.4826
"""Standard deviation of Gaussian numbers over the median of their absolute values."""

_SCATTER = (0.001, 0.01)
"""Smallest and largest intrinsic scatter of relative widths and of ellipticities; the largest if unknown."""

_FEWEST_KNOWN = 5
"""Fewest values per coefficient from which the intrinsic scatter is measured."""

_NO_WEIGHT, _LEAST_SIGMA = 5.0, 0.003
"""Deviation, in standard deviations, at which Tukey's weight vanishes, and the least standard deviation."""


def robust_sigma(deviations: npt.NDArray[Any]) -> float:
    """Return the robust standard deviation of deviations from a center."""
    return MAD_TO_SIGMA * float(np.median(np.abs(deviations)))


_LEAST_FITTED = 80
"""Fewest stars that must be left for a fit; with fewer, none are reserved."""


def choose_reserved(brightness: FloatArray, fraction: float = 0.15) -> BoolArray:
    """Return which stars to reserve, at regular ranks of brightness; none if too few would be left.

    Reserved stars are left out of a fit, which is then judged by them.
    """
    rank = np.argsort(np.argsort(-brightness, kind="stable"), kind="stable")
    chosen = np.floor((rank + 0.5) * fraction) < np.floor((rank + 1.5) * fraction)
    return np.asarray(chosen & (np.count_nonzero(~chosen) >= _LEAST_FITTED))


def fit_linear(
    terms: FloatArray, values: FloatArray, errors: FloatArray, *, scatter: float = _SCATTER[1]
) -> FloatArray:
    """Fit coefficients to relative widths, ellipticities or magnitudes by least squares with Tukey's weights.

    ``terms`` is the design matrix, shape ``(n, k)``; ``scatter`` is that of the values beyond their errors.
    """
    base = 1.0 / np.hypot(errors, scatter)
    weight = base.copy()
    solution = np.zeros(terms.shape[1])
    for _ in range(10):
        solution = np.linalg.lstsq(terms * weight[:, None], values * weight, rcond=None)[0]
        deviation = values - terms @ solution
        scale = _NO_WEIGHT * max(robust_sigma(deviation), _LEAST_SIGMA)
        weight = base * np.sqrt(np.clip(1.0 - (deviation / scale) ** 2, 1e-6, 1.0))
    return np.asarray(solution)


def fit_slope(
    x: FloatArray, values: FloatArray, errors: FloatArray, *, scatter: float
) -> tuple[float, float]:
    """Fit a line by least squares with clipping, and return its slope and the slope's error.

    Parameters
    ----------
    x, values, errors
        Points of the line, and the errors of the values.
    scatter
        Least scatter of the values in addition to their errors; the points may show a larger one.
    """
    kept = np.ones(x.size, dtype=bool)
    extra = scatter
    for _ in range(8):
        total = np.hypot(errors, extra)
        weight = kept / total**2
        centered = x - np.average(x, weights=weight)
        power = float((weight * centered**2).sum())
        slope = float((weight * centered * values).sum()) / power
        pull = np.abs(values - np.average(values, weights=weight) - slope * centered) / total
        # Scatter beyond the noise, from blends for example, is best known from the half with small errors.
        better = kept & (errors <= np.median(errors[kept]))
        spread = robust_sigma(pull[better])
        typical = float(np.median(errors[better]))
        extra = max(math.sqrt(max(spread**2 * (typical**2 + extra**2) - typical**2, 0.0)), scatter)
        kept = pull < 4.0 * max(spread, 1.0)
    return slope, max(spread, 1.0) / math.sqrt(power)


def intrinsic_scatter(deviations: FloatArray, errors: FloatArray, n_terms: int) -> float:
    """Return the scatter of values beyond their errors about a fit of ``n_terms`` coefficients.

    It comes from the half with the smaller errors.
    """
    if errors.size < _FEWEST_KNOWN * n_terms:
        return _SCATTER[1]
    known = np.argsort(errors, kind="stable")[: (errors.size + 1) // 2]
    square = robust_sigma(deviations[known]) ** 2
    # Correct for the degrees of freedom that the fit has used.
    square *= errors.size / (errors.size - n_terms)
    square -= float(np.median(errors[known])) ** 2
    return float(np.clip(math.sqrt(max(square, 0.0)), *_SCATTER))


def lowest_sufficient(misfit: FloatArray) -> int:
    """Return the first row, of models from simple to complex, that fits stars as well as any other."""
    best = int(np.argmin(misfit.mean(axis=1)))
    for row in range(best):
        worse = misfit[row] - misfit[best]
        if worse.mean() < 2.0 * worse.std() / math.sqrt(worse.size):
            return row
    return best


def weighted_median(values: FloatArray, weights: FloatArray) -> float:
    """Return the weighted median; no weight counts for more than ten times a typical one.

    Inverse errors as weights give the smallest error of the median.
    """
    order = np.argsort(values)
    total = np.cumsum(np.minimum(weights, 10.0 * np.median(weights))[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])


def half_sample_mode(values: FloatArray) -> float:
    """Return the half-sample mode of sorted values (Bickel & Frühwirth 2006, CSDA 50, 3500)."""
    while values.size > 3:
        half = (values.size + 1) // 2
        start = int(np.argmin(values[half - 1 :] - values[: values.size - half + 1]))
        values = values[start : start + half]
    return float(np.median(values))
