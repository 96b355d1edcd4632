"""Masters: correction and combination of calibration frames.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = (
    "LINEARIZED",
    "NEEDED",
    "UNITS",
    "CalibrationKind",
    "FrameKind",
    "as_master",
    "as_response",
    "combine",
    "combine_with_variance",
    "correct_frame",
    "make_master",
    "normalize",
    "pixels_of",
    "size_of",
    "variance_of",
)

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import astropy.table
import astropy.units as u
import numpy as np
import numpy.typing as npt
import scipy.ndimage
from lsst.images import Image, MaskedImage, MaskPlane, MaskSchema

from ..errors import UserError
from .assembly import FLAT_MEDIAN, assemble
from .camera.description import CameraDescription
from .camera.frame_detector import describe_frame, linearize

type CalibrationKind = Literal["bias", "dark", "flat"]
type FrameKind = Literal["bias", "dark", "flat", "counts"]
type Image32 = npt.NDArray[np.float32]

NEEDED: Mapping[str, tuple[str, ...]] = {
    "bias": (),
    "dark": ("bias",),
    "flat": ("bias", "dark"),
    "counts": ("bias", "dark"),
}
"""Masters that frames of a kind are corrected with."""

LINEARIZED = ("dark", "flat")
"""Kinds that isr takes from linearized signals; the linearizer itself comes from counts."""

UNITS = {"bias": u.adu, "dark": u.adu / u.s, "flat": u.dimensionless_unscaled}
_MOST_SATURATED = 0.05

_CLIP = 5.0
_MAD_TO_SIGMA = 1.4826
_QUARTILE_TO_SIGMA = 1.0 / 1.1503
_ROWS = 256
_COMPARED = 100_000
_AROUND, _NOISY = 15, 25.0
"""Pixels along the area that a pixel's variance comes from, and the ratio above which it is its own."""

_WORST = 5.0
"""Greatest difference of a frame from its best partner, in units of the difference of the best pair."""


def correct_frame(
    kind: FrameKind,
    pixels: npt.NDArray[Any],
    header: Mapping[str, Any],
    camera: CameraDescription,
    *,
    detector: int,
    seconds: float,
    corrections: Mapping[str, Image32],
    linearizer: astropy.table.Table | None = None,
) -> Image32:
    """Return an assembled calibration frame as its master has it.

    Parameters
    ----------
    kind
        ``bias``: ADU above the overscan; ``dark``: ADU per second; ``flat``: relative response, without the
        gains; ``counts``: ADU, saturated pixels NaN.
    seconds
        Time in which dark current was collected.
    corrections
        Masters ``bias`` and ``dark`` to subtract.
    linearizer
        Applied after the bias, as by isr; `None` to do without.
    """
    assembled = assemble(pixels, describe_frame(camera, detector, header))
    frame = assembled.image
    for label, master in corrections.items():
        if master.shape != frame.shape:
            raise UserError(f"{size_of(frame)} pixels, and the {label} has {size_of(master)}")
    if "bias" in corrections:
        frame -= corrections["bias"]
    if linearizer is not None:
        linearize(frame, linearizer, assembled.detector)
    if "dark" in corrections:
        frame -= corrections["dark"] * np.float32(seconds)
    if kind == "dark":
        if not seconds > 0:
            raise UserError(f"a dark frame of {seconds} s")
        frame /= np.float32(seconds)
    if kind == "flat":
        if (saturated := float(np.mean(assembled.saturated))) > _MOST_SATURATED:
            raise UserError(f"{saturated:.0%} of the pixels of a flat are saturated")
        try:
            frame = normalize(frame * assembled.gain)
        except ValueError as err:
            raise UserError(str(err)) from None
    if kind == "counts":
        frame[assembled.saturated] = np.nan
    return frame


def make_master(kind: CalibrationKind, frames: Mapping[str, Image32]) -> tuple[MaskedImage, dict[str, str]]:
    """Combine corrected frames of one size; return the reason for each that was left out, too.

    The master is the clipped mean, with its variance.  Its metadata have the number of frames (``NCOMBINE``),
    of excluded ones, which agree with no other (``NEXCLUDE``), and the variance of the mean in a typical
    pixel (``VARIANCE``).
    """
    names = list(frames)
    noise, outliers = _compare(list(frames.values()))
    excluded = {
        names[n]: f"differs from every other {kind} frame by {ratio:.1f} times what the two best differ by"
        for n, ratio in outliers.items()
    }
    kept = [frame for name, frame in frames.items() if name not in excluded]
    pixels, variance = combine_with_variance(kept)
    if kind == "flat":
        response = normalize(pixels)
        variance *= (np.nanmedian(response) / np.nanmedian(pixels)) ** 2
        pixels = response
    metadata: dict[str, Any] = {"NCOMBINE": len(kept), "NEXCLUDE": len(excluded)}
    if np.isfinite(noise):
        metadata["VARIANCE"] = noise**2 / len(kept)
    return as_master(kind, pixels, variance, metadata), excluded


def as_master(
    kind: CalibrationKind, pixels: Image32, variance: Image32 | None, metadata: dict[str, Any]
) -> MaskedImage:
    """Return a master as it is stored; an unknown variance is NaN."""
    if variance is None:
        variance = np.full_like(pixels, np.nan)
    return MaskedImage(
        Image(pixels, unit=UNITS[kind], metadata=metadata),
        mask_schema=MaskSchema([MaskPlane("BAD", "Pixel without a value.")]),
        variance=Image(variance, unit=UNITS[kind] ** 2),
        metadata=metadata,
    )


def as_response(flat: Image32, name: str) -> Image32:
    """Return a master flat, divided by its median if other software has left it in counts."""
    try:
        response = normalize(flat)
    except ValueError as err:
        raise UserError(f"{name}: {err}") from None
    median = float(np.nanmedian(flat))
    if median < FLAT_MEDIAN[0]:
        raise UserError(f"{name}: a median of {median:g}, where a relative response has about 1")
    # About one: the median over all detectors may be one instead of this detector's.
    return flat if median <= FLAT_MEDIAN[1] else response


def pixels_of(master: Image | MaskedImage) -> Image32:
    """Return the pixels of a master, which is a plain image in repositories of earlier releases."""
    image = master.image if isinstance(master, MaskedImage) else master
    return image.array.astype(np.float32)


def variance_of(master: Image | MaskedImage) -> Image32:
    """Return the variance of a master; 0 where it is unknown, as in plain images."""
    if not isinstance(master, MaskedImage):
        return np.zeros(master.array.shape, dtype=np.float32)
    return np.nan_to_num(master.variance.array.astype(np.float32), nan=0.0, posinf=0.0)


def size_of(image: npt.NDArray[Any]) -> str:
    """Return columns and rows as text."""
    return f"{image.shape[1]} x {image.shape[0]}"


def combine(frames: list[np.ndarray]) -> np.ndarray:
    """Return the clipped mean of aligned frames."""
    return _average(frames)[0]


def combine_with_variance(frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Combine aligned frames; return the mean and its variance.

    Of three or more frames, values over 5 sigma from their pixel's median are left out.  Sigma is the pixel's
    own spread or the frames' typical spread, whichever is larger: the spread of a few values at one pixel is
    too often small by chance.  The variance is from the spread of the frames about the mean; NaN for a single
    frame.
    """
    mean, squares, number = _average(frames)
    return mean, _local_variance(squares, number - 1.0) / number


def _average(frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the clipped mean of frames, the sum of squared deviations from it, and the number of values."""
    mean, squares = (np.empty(frames[0].shape, dtype=np.float32) for _ in range(2))
    number = np.full(frames[0].shape, len(frames), dtype=np.float32)
    # In bands of rows, so that the copies stay small.
    bands = [slice(start, start + _ROWS) for start in range(0, len(mean), _ROWS)]
    clip = len(frames) > 2
    typical = 0.0
    if clip:
        typical = float(np.median([_spread(np.stack([f[band] for f in frames])) for band in bands]))
    for band in bands:
        stack = np.stack([frame[band] for frame in frames])
        kept = np.ones(stack.shape, dtype=bool)
        if clip:
            deviation = np.abs(stack - np.median(stack, axis=0))
            sigma = np.maximum(_MAD_TO_SIGMA * np.median(deviation, axis=0), typical)
            kept = deviation <= _CLIP * sigma
            number[band] = kept.sum(axis=0)
        mean[band] = np.where(kept, stack, 0.0).sum(axis=0, dtype=np.float64) / number[band]
        squares[band] = np.where(kept, (stack - mean[band]) ** 2, 0.0).sum(axis=0)
    return mean, squares, number


def _local_variance(squares: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Return the variance of single frames, from sums of squared deviations and their degrees of freedom.

    A few frames don't tell a pixel's variance, so it is that of the pixels around; but for those that are
    much noisier, such as hot ones.
    """
    known = np.isfinite(squares) & (freedom > 0.0)
    own = np.divide(squares, freedom, out=np.full_like(squares, np.nan), where=known)
    if not known.any():
        return np.asarray(own)
    smooth: np.ndarray = np.full_like(own, np.median(own[known]))
    for _ in range(2):
        quiet = known & (own <= _NOISY * smooth)
        around, weight = (
            scipy.ndimage.uniform_filter(
                np.where(quiet, plane, 0.0), _AROUND, mode="nearest", output=np.float64
            )
            for plane in (squares, freedom)
        )
        smooth = np.divide(around, weight, out=own.astype(np.float64), where=weight > 1e-6)
    return np.asarray(np.where(known & (own > _NOISY * smooth), own, smooth), dtype=np.float32)


def _spread(stack: np.ndarray) -> float:
    return float(np.median(np.std(stack, axis=0, ddof=1)))


def _compare(frames: Sequence[np.ndarray]) -> tuple[float, dict[int, float]]:
    """Compare frames of one kind by the differences of all pairs.

    Returns the noise of one frame, from the two frames that agree best (NaN for a single frame); and for each
    frame that agrees with no other its index and its deviation in units of the noise.
    """
    step = max(1, frames[0].size // _COMPARED)
    thin = [frame.ravel()[::step] for frame in frames]
    # The upper quartile: a frame is unusable if a quarter of it is spoiled.
    deviation = np.array([[np.nanpercentile(np.abs(a - b), 75.0) for a in thin] for b in thin])
    np.fill_diagonal(deviation, np.inf)
    if len(frames) < 2:
        return float("nan"), {}
    best = deviation.min(axis=1)
    # Frames of few ADU agree to within a digit.
    typical = max(float(best.min()), 1e-6 * float(np.nanmedian(np.abs(thin[0]))) + 1e-12)
    outliers = {}
    if len(frames) > 2:
        outliers = {
            n: float(value / typical) for n, value in enumerate(best) if not value <= _WORST * typical
        }
    return _QUARTILE_TO_SIGMA * float(np.median(best)) / np.sqrt(2.0), outliers


def normalize(image: np.ndarray) -> np.ndarray:
    """Return an image divided by its median; dead pixels stay near 0, and isr masks them.

    Raises `ValueError` if the median of the finite pixels is not positive, or fewer than half are finite.
    """
    finite = np.isfinite(image)
    if finite.mean() < 0.5:
        raise ValueError(f"{finite.mean():.0%} of the pixels are finite; a flat needs half of them")
    median = float(np.median(image[finite]))
    if not median > 0:
        raise ValueError(f"the median is {median:g}, which is no illumination")
    return (image / np.float32(median)).astype(np.float32, copy=False)
