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
    "correct_frame",
    "make_master",
    "pixels_of",
    "size_of",
    "variance_of",
)

from collections.abc import Mapping
from typing import Any, Literal

import astropy.table
import astropy.units as u
import numpy as np
import numpy.typing as npt
from lsst.images import Image, MaskedImage, MaskPlane, MaskSchema

from ..errors import UserError
from ._combine import combine_with_variance, compare, normalize
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
    noise = compare(list(frames.values()))
    excluded = {
        names[n]: f"differs from every other {kind} frame by {ratio:.1f} times what the two best differ by"
        for n, ratio in noise.outliers.items()
    }
    kept = [frame for name, frame in frames.items() if name not in excluded]
    pixels, variance = combine_with_variance(kept)
    if kind == "flat":
        response = normalize(pixels)
        variance *= (np.nanmedian(response) / np.nanmedian(pixels)) ** 2
        pixels = response
    metadata: dict[str, Any] = {"NCOMBINE": len(kept), "NEXCLUDE": len(excluded)}
    if np.isfinite(noise.noise):
        metadata["VARIANCE"] = noise.noise**2 / len(kept)
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
