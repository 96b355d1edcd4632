"""Overscan subtraction, trimming and assembly of raw images.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = (
    "FLAT_MEDIAN",
    "AssembledImage",
    "MosaicPatternError",
    "RawShapeError",
    "assemble",
    "assemble_planes",
    "noise_floor",
)

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .camera.description import DetectorDescription
from .camera.planes import PlanesDescription
from .camera.raw_fits import PLANES
from .overscan import overscan_level

type Image32 = npt.NDArray[np.float32]


FLAT_MEDIAN = (0.2, 5.0)
"""Limits of the median of a relative response; a flat above them is in counts."""


class RawShapeError(UserError, ValueError):
    """A raw image or a calibration frame does not have the size in the camera's description."""


class MosaicPatternError(UserError, ValueError):
    """The pixels contradict the described pattern of colors."""


@dataclasses.dataclass(frozen=True)
class AssembledImage:
    """A detector's light-sensitive pixels, and maps of its amplifiers' properties."""

    detector: DetectorDescription
    """The detector of the assembled image; it differs from the described one if a color was extracted."""

    image: Image32
    """ADU above the overscan, or above the described bias level."""

    gain: Image32
    """Electrons per ADU, per pixel."""

    saturated: npt.NDArray[np.bool_]

    overscan: dict[str, tuple[float, float]]
    """For each amplifier with an overscan, its median level and robust standard deviation in ADU."""

    clipped: dict[str, float]
    """Raw ADU at which pixels pile up, for each amplifier where this is below the described saturation."""


def assemble(raw: npt.NDArray[Any], detector: DetectorDescription) -> AssembledImage:
    """Subtract the overscan or the bias level of each amplifier of a raw image, and assemble the image.

    The raw image is in ADU; ``detector`` is the frame's, as from `describe_frame`.
    """
    if cards := [key for amplifier in detector.amplifiers for key in amplifier.cards]:
        raise ValueError(f"{cards[0]} of detector {detector.id} is in headers: call describe_frame first")
    expected = (detector.raw_ny, detector.raw_nx)
    if raw.shape != expected:
        raise RawShapeError(
            f"raw image of detector {detector.id} ({detector.name}) has {raw.shape[0]} rows and "
            f"{raw.shape[1]} columns; the camera's description says {expected[0]} and {expected[1]}"
        )
    shape = (detector.ny, detector.nx)
    image, gain = (np.zeros(shape, dtype=np.float32) for _ in range(2))
    saturated = np.zeros(shape, dtype=bool)
    levels: dict[str, tuple[float, float]] = {}
    clipped: dict[str, float] = {}
    for amplifier in detector.amplifiers:
        pixels = raw[amplifier.raw_data_section.slices]
        target = amplifier.section.slices
        limit = amplifier.saturation
        if (ceiling := _ceiling(pixels)) is not None and ceiling < limit:
            limit = clipped[amplifier.name] = ceiling
        saturated[target] = amplifier.assembled(pixels >= limit)
        trimmed = pixels.astype(np.float32) - np.float32(amplifier.bias_level)
        if amplifier.raw_overscan_section is not None:
            level, spread, line = overscan_level(raw, amplifier, detector.overscan)
            levels[amplifier.name] = (level, spread)
            trimmed -= line
        image[target] = amplifier.assembled(trimmed)
        gain[target] = amplifier.gain
    if detector.mosaic is not None:
        _check_pattern(image, detector)
        image = np.sum(detector.mosaic.extract(image), axis=0, dtype=np.float32)
        gain = detector.mosaic.extract(gain)[0]
        saturated = np.any(detector.mosaic.extract(saturated), axis=0)
    return AssembledImage(
        detector=detector.assembled,
        image=image,
        gain=gain,
        saturated=saturated,
        overscan=levels,
        clipped=clipped,
    )


def assemble_planes(
    header: Mapping[str, Any], planes: PlanesDescription, detector: DetectorDescription
) -> tuple[dict[str, npt.NDArray[np.bool_]], Image32 | None]:
    """Read the planes beside raw pixels, and assemble them as the image is assembled.

    Parameters
    ----------
    header
        Cards of the raw frame, as from `read_raw_pixels`.
    detector
        The frame's detector, as from `describe_frame`.

    Returns
    -------
    masks
        Pixels to be masked, by mask plane.
    variance
        In ADU squared, NaN for pixels without one; `None` without a plane of noise.
    """
    planes.check(header)

    def read(extension: str) -> npt.NDArray[Any]:
        plane: npt.NDArray[Any] = header[PLANES].read(extension)
        if plane.shape == (detector.raw_ny, detector.raw_nx):
            placed = np.zeros((detector.ny, detector.nx), dtype=plane.dtype)
            for amplifier in detector.amplifiers:
                pixels = plane[amplifier.raw_data_section.slices]
                placed[amplifier.section.slices] = amplifier.assembled(pixels)
            return placed
        if plane.shape != (detector.ny, detector.nx):
            raise RawShapeError(
                f"extension {extension} has {plane.shape[0]} rows and {plane.shape[1]} columns; the raw "
                f"image of detector {detector.name} has {detector.raw_ny} and {detector.raw_nx}, the "
                f"assembled one {detector.ny} and {detector.nx}"
            )
        return plane

    masks: dict[str, npt.NDArray[np.bool_]] = {}
    variance: Image32 | None = None
    if planes.mask is not None:
        masks = planes.mask.split(read(planes.mask.extension))
    if planes.noise is not None:
        variance = planes.noise.to_variance(read(planes.noise.extension))
    if (mosaic := detector.mosaic) is not None:
        masks = {name: np.any(mosaic.extract(mask), axis=0) for name, mask in masks.items()}
        variance = None if variance is None else np.sum(mosaic.extract(variance), axis=0)
    return masks, variance


def _check_pattern(image: Image32, detector: DetectorDescription) -> None:
    """Raise if the two greens are not alike, and the two other colors are: a shifted or mirrored pattern."""
    mosaic = detector.mosaic
    assert mosaic is not None, "The caller has looked."
    parts = [[image[row::2, column::2] for column in (0, 1)] for row in (0, 1)]
    diagonals = [(parts[0][0], parts[1][1]), (parts[0][1], parts[1][0])]
    green_first = mosaic.pattern[0] == "G"
    greens, others = diagonals if green_first else diagonals[::-1]
    unlike, alike = (abs(float(np.median(a) - np.median(b))) for a, b in (greens, others))
    spread = 1.4826 * float(np.median(np.abs(greens[0] - np.median(greens[0]))))
    error = max(1.8 * spread / math.sqrt(greens[0].size), 0.5)
    if unlike > max(5.0 * alike, 10.0 * error):
        raise MosaicPatternError(
            f"mosaic.pattern = {mosaic.pattern} of detector {detector.id} ({detector.name}): the pixels that "
            f"are green by it differ by {unlike:.4g} ADU, those of the other diagonal by {alike:.4g}; the "
            f"stored image begins with another color, try {'RGGB or BGGR' if green_first else 'GRBG or GBRG'}"
        )


def _ceiling(pixels: npt.NDArray[Any]) -> float | None:
    """Return the value at which pixels pile up, or `None`."""
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    if not finite.size:
        return None
    top = float(finite.max())
    at_top = np.count_nonzero(finite == top)
    below = np.count_nonzero(finite > top - max(0.01 * abs(top), 20.0)) - at_top
    # A converter's limit or a full well leaves a spike at the end of the histogram, light a tail.
    return top if 10 <= at_top < 0.2 * finite.size and at_top > 3 * below else None


def noise_floor(detector: DetectorDescription) -> Image32:
    """Return the variance of read-out and digitization in electrons squared, per assembled pixel."""
    floor = np.zeros((detector.ny, detector.nx), dtype=np.float32)
    for amplifier in detector.amplifiers:
        floor[amplifier.section.slices] = amplifier.read_noise**2 + amplifier.gain**2 / 12.0
    return floor
