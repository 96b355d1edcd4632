"""Correcting single calibration frames, and combining them into masters.

Runs in the driver, for ``obs ingest-calibs``, and in workers, for the calibration pipelines.
"""

from __future__ import annotations

__all__ = (
    "LINEARIZED",
    "NEEDED",
    "UNITS",
    "CalibrationKind",
    "FrameKind",
    "correct_frame",
    "make_master",
    "size_of",
)

from collections.abc import Mapping
from typing import Any, Literal

import astropy.table
import astropy.units as u
import numpy as np
import numpy.typing as npt
from lsst.images import Image

from ..errors import UserError
from ._combine import combine, compare, normalize
from .assembly import assemble
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
    pixels
        Raw pixels.
    header
        The raw file's cards.
    camera
        The camera.
    detector
        Identifier of the detector.
    seconds
        Time in which dark current was collected.
    corrections
        Masters ``bias`` and ``dark`` to subtract.
    linearizer
        Applied after the bias, as by isr; `None` to do without.

    Raises
    ------
    UserError
        Raised if the frame can't be used, with the reason.
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


def make_master(kind: CalibrationKind, frames: Mapping[str, Image32]) -> tuple[Image, dict[str, str]]:
    """Combine corrected frames.

    Parameters
    ----------
    kind
        What they are frames of.
    frames
        Corrected frames of one size, by name.

    Returns
    -------
    master
        Clipped mean.  Its metadata have the number of frames (``NCOMBINE``), of excluded ones (``NEXCLUDE``)
        and the variance of the mean in a typical pixel (``VARIANCE``).
    excluded
        For each frame that agrees with no other, the reason why it was left out.
    """
    names = list(frames)
    noise = compare(list(frames.values()))
    excluded = {
        names[n]: f"differs from every other {kind} frame by {ratio:.1f} times what the two best differ by"
        for n, ratio in noise.outliers.items()
    }
    kept = [frame for name, frame in frames.items() if name not in excluded]
    pixels = combine(kept)
    if kind == "flat":
        pixels = normalize(pixels)
    metadata: dict[str, Any] = {"NCOMBINE": len(kept), "NEXCLUDE": len(excluded)}
    if np.isfinite(noise.noise):
        metadata["VARIANCE"] = noise.noise**2 / len(kept)
    return Image(pixels, unit=UNITS[kind], metadata=metadata), excluded


def size_of(image: npt.NDArray[Any]) -> str:
    """Return columns and rows as text."""
    return f"{image.shape[1]} x {image.shape[0]}"
