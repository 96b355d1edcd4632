"""Quality measures of an image and its catalog, and the limits that they must keep.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "Measure",
    "QualityConfig",
    "QualityLimitError",
    "judge",
    "measure_linearity",
    "measure_pixels",
    "measure_psf",
    "names_beyond",
)

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lsst.images import VisitImage
from lsst.pex.config import ChoiceField, Config, RangeField

from ..errors import UserError
from .frames import plane_union
from .photometry import Losses
from .pixels import BoolArray, FloatArray
from .pixels.psf_model import polynomial_terms
from .pixels.robust import fit_slope, robust_sigma
from .pixels.stamps import gather_windows, nearest_pixel
from .sources import SourceMeasurements

_BLANK = math.nan
_LEAST_RESERVED, _MOST_NOISE = 3, 0.02
"""Fewest stars, and largest share of noise in their light, for a measurement of the PSF's residual."""

_FEWEST, _CORE_SNR, _CORE_SCATTER = 10, 50.0, 0.003
"""Fewest stars for a measure; for the linearity, the least signal-to-noise ratio of stars, and the relative
scatter of their profiles beyond noise."""


class QualityLimitError(UserError, RuntimeError):
    """An image or its catalog is beyond limits of the configuration."""


def _limit(doc: str, default: float) -> RangeField:
    return RangeField(doc, float, default, min=0.0)


class QualityConfig(Config):
    """Limits of the quality measures, and the action beyond a limit."""

    action = ChoiceField[str](
        doc="Action for an image beyond a limit.",
        allowed={
            "flag": "Its rows in the catalog and the summaries are flagged; fluxes are not calibrated if "
            "the PSF or the zero point is beyond a limit.",
            "fail": "The quantum fails.",
        },
        default="flag",
    )
    min_noise_ratio = _limit("Least ratio of the sky's measured noise to the predicted one.", 0.8)
    max_noise_ratio = _limit("Largest ratio of the sky's measured noise to the predicted one.", 1.25)
    max_line_noise = _limit(
        "Largest scatter of the medians of rows or of columns, in units of what independent pixels have.", 3.0
    )
    max_phase_difference = _limit(
        "Largest difference between the four pixels of 2 x 2 cells, in units of the noise: a color mosaic.",
        0.2,
    )
    max_sky_structure = _limit(
        "Largest deviation of the sky from a smooth surface, in units of the noise of a pixel: nebulae, "
        "galaxies, glow.",
        1.5,
    )
    max_masked_fraction = _limit("Largest fraction of masked pixels.", 0.25)
    max_detected_fraction = _limit("Largest fraction of pixels that belong to sources.", 0.6)
    max_confusion = _limit(
        "Largest ratio of the noise of faint sources' fluxes to that of their pixels alone: sources too "
        "faint to be detected, nebulae.",
        1.5,
    )
    max_streak_fraction = _limit("Largest fraction of sources on streaks.", 0.1)
    max_doubled_fraction = _limit(
        "Largest fraction of sources with another one at the same offset: the telescope jumped.", 0.1
    )
    min_psf_stars = _limit("Least number of PSF stars.", 3)
    max_psf_ellipticity = _limit("Largest shear of the PSF, (a - b) / (a + b).", 0.35)
    max_psf_trend = _limit("Largest change of the PSF's width over the detector, relative to the width.", 0.8)
    max_psf_scatter = _limit("Largest relative scatter of the PSF stars' sizes about the PSF's.", 0.1)
    max_psf_residual = _limit("Largest share of the PSF stars' light that the PSF does not explain.", 0.08)
    min_matched_references = _limit("Least number of matched references, where there are references.", 5)
    max_astrometric_scatter = _limit(
        "Largest scatter per axis of stars that were not used in the fit of the projection, in pixels.", 0.5
    )
    max_zero_point_scatter = _limit(
        "Largest scatter of stars about the zero point in magnitudes: of reserved ones, if there are any.",
        0.15,
    )
    max_zero_point_error = _limit("Largest error of the zero point in magnitudes.", 0.05)
    max_zero_point_offset = _limit("Largest offset of reserved stars from the zero point in magnitudes.", 0.1)
    max_zero_point_trend = _limit(
        "Largest change of the zero point over the image in magnitudes: clouds, a wrong flat or gain.", 0.05
    )
    max_nonlinearity = _limit(
        "Largest share of its light that the brightest star has lost relative to faint ones: a detector "
        "that is not linear, or references that are not.",
        0.01,
    )


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number and the limits that it must keep."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the value is within the limits; an unknown value is, unless there is a lower limit."""
        if not math.isfinite(self.value):
            return self.low is None
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    def __str__(self) -> str:
        expected = " and ".join(
            f"{word} {limit:g}"
            for word, limit in (("at least", self.low), ("at most", self.high))
            if limit is not None
        )
        return f"{self.name} = {self.value:.3g} (expected: {expected})"


def judge(config: QualityConfig, values: Mapping[str, float]) -> list[Measure]:
    """Return the values with their limits, which are ``min_NAME`` and ``max_NAME`` of the configuration.

    Raises
    ------
    QualityLimitError
        Raised if a value is beyond its limits and the configuration says ``fail``.
    """
    measures = [
        Measure(name, value, getattr(config, f"min_{name}", None), getattr(config, f"max_{name}", None))
        for name, value in values.items()
    ]
    if config.action == "fail" and (beyond := [str(measure) for measure in measures if not measure.ok]):
        raise QualityLimitError(
            f"The image is beyond limits of its quality: {'; '.join(beyond)}. Correct its calibration or the "
            "camera's description, change the limits (quality.*), or set quality.action='flag'."
        )
    return measures


def measure_pixels(image: VisitImage) -> dict[str, float]:
    """Compare the pixels of the sky with the noise that their variance predicts."""
    hidden = plane_union(image.mask, "BAD", "COSMIC_RAY", "SATURATED", "NO_DATA")
    detected = image.mask.get("DETECTED")
    # Lines are judged by a part of their pixels: medians of a thousand are good enough.
    step = max(min(detected.shape) // 1024, 1)
    near = detected.copy()
    for _ in range(3):
        # The wings of sources reach beyond their footprints.
        near[1:] |= near[:-1]
        near[:-1] |= near[1:]
        near[:, 1:] |= near[:, :-1]
        near[:, :-1] |= near[:, 1:]
    scaled = image.image.array / np.sqrt(np.maximum(image.variance.array, 1e-6))
    scaled[hidden | near | (image.variance.array <= 0.0)] = np.nan
    values = {
        **dict.fromkeys(("noise_ratio", "line_noise", "phase_difference", "sky_structure"), _BLANK),
        "masked_fraction": float(hidden.mean()),
        "detected_fraction": float(detected.mean()),
    }
    sample = scaled[:: 2 * step, :: 2 * step] if step > 1 else scaled
    sky = sample[np.isfinite(sample)]
    if sky.size < 1000:
        return values
    noise = values["noise_ratio"] = _spread(sky)
    if noise > 0.0:
        values["line_noise"] = max(
            _line_noise(scaled[:, ::step] / noise), _line_noise(scaled[::step].T / noise)
        )
        stride = 2 * step
        phases = [float(np.nanmedian(scaled[j::stride, i::stride])) for j in (0, 1) for i in (0, 1)]
        values["phase_difference"] = float(np.ptp(phases)) / noise
    values["sky_structure"] = _sky_structure(image)
    return values


def _spread(values: npt.NDArray[Any]) -> float:
    return robust_sigma(values - np.median(values))


def _line_noise(scaled: npt.NDArray[Any]) -> float:
    """Return the scatter of the medians of neighboring rows, over that of independent pixels."""
    number = np.isfinite(scaled).sum(axis=1)
    enough = number >= 32
    if np.count_nonzero(enough) < 16:
        return _BLANK
    # Hidden pixels are NaN, which sorting puts last.
    ordered, number = np.sort(scaled[enough], axis=1), number[enough]
    row = np.arange(number.size)
    middle = 0.5 * (ordered[row, (number - 1) // 2] + ordered[row, number // 2])
    medians = middle * np.sqrt(number) / 1.2533
    return _spread(np.diff(medians)) / math.sqrt(2.0)


def _sky_structure(image: VisitImage) -> float:
    """Return the largest deviation of the subtracted sky from a quadratic surface, in units of its noise."""
    background = image.backgrounds.subtracted
    if background is None or not image.summary_stats.skyNoise > 0.0:
        return _BLANK
    box = image.bbox
    x, y = np.meshgrid(
        np.linspace(box.x.start, box.x.stop - 1, 24), np.linspace(box.y.start, box.y.stop - 1, 24)
    )
    level = np.asarray(background.field(x=x.ravel(), y=y.ravel()), dtype=np.float64)
    terms = polynomial_terms(
        (x.ravel() - box.x.start) / box.x.size, (y.ravel() - box.y.start) / box.y.size, 2
    )
    weight = np.ones(level.size)
    for _ in range(10):
        solution = np.linalg.lstsq(terms * weight[:, None], level * weight, rcond=None)[0]
        deviation = level - terms @ solution
        scale = max(_spread(deviation), 1e-6)
        weight = 1.0 / np.sqrt(1.0 + (deviation / (2.0 * scale)) ** 2)
    # One cell may hold a bright star's halo; structure is wider.
    return float(np.sort(np.abs(deviation))[-6]) / image.summary_stats.skyNoise


def measure_psf(
    measured: SourceMeasurements, stars: BoolArray, reserved: BoolArray, sky_noise: float
) -> dict[str, float]:
    """Compare the PSF with its stars, and the noise of faint PSF fluxes with that of their pixels.

    The residual is measured with the reserved stars, which the PSF was not fitted to, if they are bright.
    """
    model = measured.model
    fwhm, g1, g2 = model.parameters(*model.grid())
    values = {
        "psf_stars": float(np.count_nonzero(stars)),
        "psf_ellipticity": float(np.median(np.hypot(g1, g2))),
        "psf_trend": float(np.ptp(fwhm) / np.median(fwhm)),
        **dict.fromkeys(("psf_scatter", "psf_residual", "confusion"), _BLANK),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        signal = measured.psf.flux / measured.psf.pixel_err
    if np.count_nonzero(faint := (signal > 3.0) & (signal < 20.0)) >= _FEWEST:
        values["confusion"] = float(np.median((measured.psf.noise_err / measured.psf.pixel_err)[faint]))
    good = stars & (measured.psf.flux > 0.0)
    if np.count_nonzero(good) < 3:
        return values
    ratio = (measured.moments.sigma / measured.psf_moments.sigma)[good]
    values["psf_scatter"] = _spread(ratio) + abs(float(np.median(ratio)) - 1.0)
    residual, noise = _unexplained_light(measured, reserved & (measured.psf.flux > 0.0), sky_noise)
    if noise > _MOST_NOISE:
        residual, _ = _unexplained_light(measured, good, sky_noise)
    values["psf_residual"] = residual
    return values


def _unexplained_light(
    measured: SourceMeasurements, stars: BoolArray, sky_noise: float
) -> tuple[float, float]:
    """Return the share of the stars' light that the PSF does not explain, and that of the noise in it."""
    psf, model = measured.psf, measured.model
    if np.count_nonzero(stars) < _LEAST_RESERVED:
        return _BLANK, math.inf
    ix, iy = nearest_pixel(psf.x[stars], psf.y[stars], psf.residual.shape)
    radius = math.ceil(1.2 * model.fwhm) + 1
    stack = gather_windows(psf.residual, ix, iy, radius, fill=0.0).sum(axis=0)
    # The expected sum of absolute values if there were only noise.
    noise = math.sqrt(2.0 / math.pi) * stack.size * math.sqrt(ix.size) * sky_noise
    excess = math.sqrt(max(float(np.abs(stack).sum()) ** 2 - noise**2, 0.0))
    light = float(psf.flux[stars].sum())
    return excess / light, noise / light


def measure_linearity(
    image: VisitImage, measured: SourceMeasurements, photometric: Losses | None
) -> dict[str, float]:
    """Return the share of light that the brightest star lost relative to faint ones; 0 if insignificant.

    Two independent measures are averaged: the change of the stars' profiles with their brightness, and that
    of their fluxes relative to those of references.

    Parameters
    ----------
    photometric
        Losses of stars by the fluxes of their references.
    """
    groups = []
    for losses in (_core_losses(image, measured), photometric):
        if losses is not None and losses.stars.size >= _FEWEST:
            x, y = measured.psf.x[losses.stars], measured.psf.y[losses.stars]
            profile = measured.model.stamps(x, y, *nearest_pixel(x, y, image.image.array.shape), 1)
            peak = measured.psf.flux[losses.stars] * profile.max(axis=(1, 2))
            order = np.argsort(-peak, kind="stable")
            groups.append((peak[order], losses.lost[order], losses.error[order]))
    if not groups:
        return {"nonlinearity": _BLANK}
    brightest = max(float(light[0]) for light, _, _ in groups)

    # With the brightest star of each group, and without it.
    (slope, error), (rest, rest_error) = (
        np.array(
            [
                fit_slope(light[n:] / brightest, lost[n:], errors[n:], scatter=_CORE_SCATTER)
                for light, lost, errors in groups
            ]
        ).T
        for n in (0, 1)
    )
    loss = float(np.average(slope, weights=error**-2))
    # A gain proves nothing: unseen neighbors widen faint stars.
    if not loss > 3.5 / math.sqrt((error**-2).sum()):
        return {"nonlinearity": 0.0}
    # One bright star may be two or variable.  Either both measures know it, or the others lose half as much.
    if len(groups) == 2 and bool(np.all(slope > 2.0 * error)):
        return {"nonlinearity": loss}
    others = float(np.average(rest, weights=rest_error**-2))
    return {"nonlinearity": max(min(loss, 2.0 * others), 0.0)}


def _core_losses(image: VisitImage, measured: SourceMeasurements) -> Losses:
    """Return the losses of bright stars by the shapes of their cores.

    A detector that is not linear changes pixels in proportion to the square of their light.  Stars then
    differ from the PSF by its square, the more the brighter they are.  Errors of the PSF are the same share
    of the light of all stars.
    """
    psf, model = measured.psf, measured.model
    stars = np.nonzero(measured.usable(_CORE_SNR) & (psf.blendedness < 0.02))[0]
    radius = math.ceil(1.5 * model.fwhm)
    ix, iy = nearest_pixel(psf.x[stars], psf.y[stars], psf.residual.shape)
    hidden = plane_union(image.mask, "BAD", "COSMIC_RAY", "SATURATED", "NO_DATA")
    good = ~gather_windows(hidden, ix, iy, radius, fill=True)
    whole = good.mean(axis=(1, 2)) > 0.9
    stars, ix, iy, good = stars[whole], ix[whole], iy[whole], good[whole]
    if not stars.size:
        return Losses(stars, np.zeros(0), np.zeros(0))
    flux = psf.flux[stars]
    profile = model.stamps(psf.x[stars], psf.y[stars], ix, iy, radius)
    variance = gather_windows(image.variance.array, ix, iy, radius).astype(np.float64)
    # All stars have the same weights, so that errors of the PSF count the same in faint and bright ones.
    weight = good / (profile + float(np.median(image.variance.array)) / flux.max())

    def product(first: FloatArray, second: FloatArray) -> FloatArray:
        return np.asarray((weight * first * second).sum(axis=(1, 2)))

    square = profile**2
    # Keep the part of the square that no change of the star's flux can fit.
    square -= (product(square, profile) / product(profile, profile))[:, None, None] * profile
    power = product(square, square)
    residual = gather_windows(psf.residual, ix, iy, radius).astype(np.float64)
    # The share of a fitted flux that this change of the pixels takes.
    share = (profile**3).sum(axis=(1, 2)) / (profile**2).sum(axis=(1, 2)) / flux / power
    error = share * np.sqrt(product(square, weight * square * variance))
    return Losses(stars, -share * product(square, residual), error)


def names_beyond(measures: Sequence[Measure], among: Sequence[str] | None = None) -> str:
    """Return the names of the measures that are beyond their limits, separated by commas."""
    return ",".join(m.name for m in measures if not m.ok and (among is None or m.name in among))
