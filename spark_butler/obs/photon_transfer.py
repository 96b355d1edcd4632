"""Gain, read noise and linearity of amplifiers, from pairs of flats and biases.  Runs in workers."""

from __future__ import annotations

__all__ = (
    "FlatPair",
    "PhotonTransfer",
    "PhotonTransferError",
    "fit_linearity",
    "fit_photon_transfer",
    "measure_pair",
    "measure_read_noise",
)

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from astropy.stats import sigma_clip

from ..errors import UserError

_CLIP = 4.0
_CLIPPED_VARIANCE = 0.99892
"""Variance of a normal distribution that is cut at four sigma."""

type Pixels = npt.NDArray[np.float64]


class PhotonTransferError(UserError, ValueError):
    """Frames don't determine a gain or a linearity."""


@dataclasses.dataclass(frozen=True)
class FlatPair:
    """Two flats of one exposure time, in one amplifier."""

    mean: float
    """ADU above bias."""
    variance: float
    """Variance of one frame in ADU squared, read noise included."""
    error: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class PhotonTransfer:
    """Gain, noise and linearity of an amplifier, from flats and biases."""

    gain: float
    """Electrons per ADU."""
    gain_error: float
    noise: float
    """Read noise without that of digitization, in electrons."""
    noise_error: float
    turnoff: float
    """Mean in ADU of the brightest pair before the variance falls, or of the brightest one."""
    curvature: float
    """Coefficient of the squared mean in the variance (brighter pixels grow), in 1; NaN if not fitted."""
    pairs: int


def _clipped(pixels: Pixels) -> tuple[float, float, int]:
    """Return clipped mean, variance and number of finite pixels."""
    kept = sigma_clip(pixels[np.isfinite(pixels)], sigma=_CLIP, maxiters=5, masked=False)
    if kept.size < 100:
        raise PhotonTransferError(f"{kept.size} usable pixels of an amplifier; 100 are needed")
    return float(np.mean(kept)), float(np.var(kept, ddof=1)) / _CLIPPED_VARIANCE, int(kept.size)


def measure_pair(first: Pixels, second: Pixels, seconds: float) -> FlatPair:
    """Return mean and variance of two flats; what both have in common is not in the variance.

    They are in ADU above bias; pixels that can't be used are NaN.
    """
    usable = np.isfinite(first) & np.isfinite(second)
    if usable.mean() < 0.5:
        raise PhotonTransferError(f"{usable.mean():.0%} of the pixels can be used; half of them are needed")
    levels = [_clipped(each[usable])[0] for each in (first, second)]
    mean = 0.5 * (levels[0] + levels[1])
    if not min(levels) > 0:
        raise PhotonTransferError(f"levels of {levels[0]:g} and {levels[1]:g} ADU, which is no illumination")
    # The lamp may have changed in between.
    difference = first * (mean / levels[0]) - second * (mean / levels[1])
    _, variance, count = _clipped(difference[usable])
    return FlatPair(mean, 0.5 * variance, 0.5 * variance * np.sqrt(2.0 / count), seconds)


def measure_read_noise(frames: Sequence[Pixels]) -> tuple[float, float]:
    """Return the variance of two or more biases in ADU squared, digitization included, and its error."""
    if len(frames) < 2:
        raise PhotonTransferError(f"{len(frames)} bias frames can be used; two are needed for the read noise")
    found = [_clipped(a - b) for a, b in itertools.pairwise(frames)]
    variances = [0.5 * variance for _, variance, _ in found]
    # Hot and cold frames are the minority.
    variance = float(np.median(variances))
    statistical = variance * np.sqrt(2.0 / found[0][2] / len(found))
    scatter = float(np.std(variances)) / np.sqrt(len(found))
    return variance, float(np.hypot(statistical, scatter))


def fit_photon_transfer(pairs: Sequence[FlatPair], read_variance: tuple[float, float]) -> PhotonTransfer:
    """Fit gain and read noise.

    Parameters
    ----------
    pairs
        At least one pair; with five and more levels, the growth of bright pixels is fitted as well.
    read_variance
        As from `measure_read_noise`.
    """
    if not pairs:
        raise PhotonTransferError("no pair of flats of one exposure time and filter can be used")
    ordered = sorted(pairs, key=lambda pair: pair.mean)
    mean, variance, error = np.array([(pair.mean, pair.variance, pair.error) for pair in ordered]).T
    floor, floor_error = read_variance
    last = int(np.argmax(variance))
    # Beyond the largest variance, pixels are full. A fall within the errors is none.
    if variance[-1] > variance[last] - 5.0 * np.hypot(error[-1], error[last]):
        last = len(mean) - 1
    turnoff = float(mean[last])
    mean, variance, error = mean[: last + 1], variance[: last + 1], error[: last + 1]
    signal = variance - floor
    weight = 1.0 / np.hypot(error, floor_error)
    spread = mean.max() / mean.min()
    powers = [mean, mean**2] if len(mean) >= 5 and spread > 3.0 else [mean]
    design = np.stack(powers, axis=1) * weight[:, None]
    solution, *_ = np.linalg.lstsq(design, signal * weight, rcond=None)
    covariance = np.linalg.inv(design.T @ design)
    residual = (signal - np.stack(powers, axis=1) @ solution) * weight
    excess = max(1.0, float(np.sum(residual**2)) / max(len(mean) - len(powers), 1))
    slope, slope_error = float(solution[0]), float(np.sqrt(covariance[0, 0] * excess))
    if not slope > 0:
        raise PhotonTransferError(
            f"the variance of flats ({variance[-1]:.4g} ADU^2 at {mean[-1]:.4g} ADU) is no more than that of "
            f"biases ({floor:.4g} ADU^2)"
        )
    gain = 1.0 / slope
    noise_variance = max(floor - 1.0 / 12.0, 0.0)
    noise = gain * np.sqrt(noise_variance)
    relative = floor_error / (2.0 * max(noise_variance, 1e-12))
    return PhotonTransfer(
        gain=gain,
        gain_error=gain**2 * slope_error,
        noise=float(noise),
        noise_error=float(noise * np.hypot(relative, slope_error / slope)),
        turnoff=turnoff,
        curvature=float(solution[1]) if len(powers) == 2 else float("nan"),
        pairs=len(mean),
    )


def fit_linearity(
    means: Sequence[float], seconds: Sequence[float], *, order: int = 3
) -> tuple[tuple[float, ...], float]:
    """Fit the polynomial that makes the signal proportional to the exposure time.

    Parameters
    ----------
    means
        ADU above bias, of a steady lamp.
    order
        Highest power of the signal.

    Returns
    -------
    coefficients
        Of the second and higher powers of the signal, to be added to it.
    scatter
        Largest relative deviation from proportionality that is left.
    """
    signal, time = np.asarray(means, dtype=float), np.asarray(seconds, dtype=float)
    if len(np.unique(time)) < order + 2:
        raise PhotonTransferError(
            f"flats of {len(np.unique(time))} exposure times; a polynomial of order {order} needs {order + 2}"
        )
    top = signal.max()
    scaled = signal / top
    # Photon noise grows with the root of the signal; low levels weigh less, relative to their size.
    weight = 1.0 / np.sqrt(scaled)
    design = np.stack([time, *(-(scaled**power) for power in range(2, order + 1))], axis=1) * weight[:, None]
    solution, *_ = np.linalg.lstsq(design, scaled * weight, rcond=None)
    rate, parts = solution[0], solution[1:]
    corrected = scaled + sum(part * scaled**power for power, part in enumerate(parts, start=2))
    scatter = float(np.max(np.abs(corrected / (rate * time) - 1.0)))
    if not (rate > 0 and np.all(np.diff(corrected[np.argsort(scaled)]) >= 0)):
        raise PhotonTransferError("the signal does not grow with the exposure time: is the lamp steady?")
    coefficients = tuple(float(part / top ** (power - 1)) for power, part in enumerate(parts, start=2))
    return coefficients, scatter
