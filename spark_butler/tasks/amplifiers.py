"""Overscan subtraction, trimming and assembly of raw images."""

from __future__ import annotations

__all__ = ("AssembledImage", "RawShapeError", "assemble")

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..errors import UserError
from ..obs.description import AmplifierDescription, DetectorDescription

type Image32 = npt.NDArray[np.float32]


class RawShapeError(UserError, ValueError):
    """A raw image or a calibration frame does not have the size that the camera's description says."""


@dataclasses.dataclass(frozen=True)
class AssembledImage:
    """A detector's light-sensitive pixels, and maps of its amplifiers' properties."""

    image: Image32
    """ADU above the overscan."""

    gain: Image32
    """Electrons per ADU, per pixel."""

    read_noise: Image32
    """Electrons, per pixel."""

    saturated: npt.NDArray[np.bool_]

    overscan: dict[str, tuple[float, float]]
    """For each amplifier with an overscan, its median level and robust standard deviation in ADU."""


def assemble(
    raw: npt.NDArray[Any],
    detector: DetectorDescription,
    *,
    overscan_fit: str = "row",
    smooth: int = 51,
) -> AssembledImage:
    """Subtract each amplifier's overscan and put its pixels where they belong.

    Parameters
    ----------
    raw
        Raw image in ADU, shape ``(raw_ny, raw_nx)``.
    detector
        Geometry and nominal properties.
    overscan_fit
        ``row`` subtracts the median of each row's overscan, smoothed along the column; ``constant`` subtracts
        one number per amplifier.
    smooth
        Width in rows of the median filter that ``row`` smooths with; 1 does not smooth.

    Raises
    ------
    RawShapeError
        Raised if the image is not of the size described.
    """
    expected = (detector.raw_ny, detector.raw_nx)
    if raw.shape != expected:
        raise RawShapeError(
            f"raw image of detector {detector.id} ({detector.name}) has {raw.shape[0]} rows and "
            f"{raw.shape[1]} columns; the camera's description says {expected[0]} and {expected[1]}"
        )
    shape = (detector.ny, detector.nx)
    image, gain, noise = (np.zeros(shape, dtype=np.float32) for _ in range(3))
    saturated = np.zeros(shape, dtype=bool)
    levels: dict[str, tuple[float, float]] = {}
    for amplifier in detector.amplifiers:
        pixels = raw[amplifier.raw_data_section.slices]
        target = amplifier.section.slices
        saturated[target] = pixels >= amplifier.saturation
        trimmed = pixels.astype(np.float32)
        if amplifier.raw_overscan_section is not None:
            level, spread, per_row = _overscan_level(raw, amplifier, overscan_fit, smooth)
            levels[amplifier.name] = (level, spread)
            trimmed -= per_row[:, None]
        image[target] = trimmed
        gain[target] = amplifier.gain
        noise[target] = amplifier.read_noise
    return AssembledImage(image=image, gain=gain, read_noise=noise, saturated=saturated, overscan=levels)


def _overscan_level(
    raw: npt.NDArray[Any], amplifier: AmplifierDescription, fit: str, smooth: int
) -> tuple[float, float, Image32]:
    assert amplifier.raw_overscan_section is not None, "The caller has looked."
    overscan = raw[amplifier.raw_overscan_section.slices].astype(np.float32)
    level = float(np.median(overscan))
    spread = 1.4826 * float(np.median(np.abs(overscan - level)))
    if fit == "constant":
        # The mean of what lies within three sigma: a median of integers has steps of half an ADU.
        near = np.abs(overscan - level) <= 3.0 * max(spread, 1.0)
        return level, spread, np.full(len(overscan), overscan[near].mean(), dtype=np.float32)
    # Deviant pixels (trails of saturated stars, cosmic rays) are left out, then rows are averaged.
    rows = np.median(overscan, axis=1, keepdims=True)
    near = np.abs(overscan - rows) <= 3.0 * max(spread, 1.0)
    per_row = np.where(near, overscan, 0.0).sum(axis=1) / np.maximum(near.sum(axis=1), 1)
    if smooth > 1:
        per_row = scipy.ndimage.median_filter(per_row, min(smooth, len(per_row)), mode="nearest")
    return level, spread, per_row.astype(np.float32)
