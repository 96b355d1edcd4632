"""Assembling raw frames and combining them into master calibrations."""

from __future__ import annotations

__all__ = ("assemble", "combine", "normalize")

import numpy as np

from .description import DetectorDescription

_CLIP = 5.0
_MAD_TO_SIGMA = 1.4826
_ROWS = 256


def assemble(pixels: np.ndarray, detector: DetectorDescription) -> np.ndarray:
    """Return the light-sensitive pixels in the detector's frame, without overscan and its level.

    Parameters
    ----------
    pixels
        Raw pixels in ADU.
    detector
        Says which sections they consist of.

    Returns
    -------
    assembled
        ``float32`` array of the detector's ``ny`` x ``nx``.  From each amplifier that has an overscan, the
        overscan's clipped mean is subtracted.

    Raises
    ------
    ValueError
        Raised if the raw image has not the described size.
    """
    if pixels.shape != (detector.raw_ny, detector.raw_nx):
        raise ValueError(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels; a raw frame of detector {detector.id} has "
            f"{detector.raw_nx} x {detector.raw_ny}"
        )
    assembled = np.empty((detector.ny, detector.nx), dtype=np.float32)
    for amplifier in detector.amplifiers:
        data = pixels[amplifier.raw_data_section.slices].astype(np.float32)
        if amplifier.raw_overscan_section is not None:
            data -= _clipped_mean(pixels[amplifier.raw_overscan_section.slices])
        assembled[amplifier.section.slices] = data
    return assembled


def _clipped_mean(values: np.ndarray) -> np.float32:
    flat = values.astype(np.float64).ravel()
    median = np.median(flat)
    # At least one ADU: the spread of quiet integers may vanish.
    sigma = max(_MAD_TO_SIGMA * np.median(np.abs(flat - median)), 1.0)
    return np.float32(flat[np.abs(flat - median) <= _CLIP * sigma].mean())


def combine(frames: list[np.ndarray]) -> np.ndarray:
    """Return the clipped mean of aligned frames.

    Parameters
    ----------
    frames
        Arrays of one shape.

    Returns
    -------
    mean
        ``float32``.  Of three and more frames, values 5 sigma from their pixel's median are left out.
        Sigma is the pixel's own spread or the frames' typical spread, whichever is larger: the spread of a
        few values at one pixel is too often small by chance.
    """
    if len(frames) < 3:
        return np.mean(frames, axis=0, dtype=np.float64).astype(np.float32)
    mean = np.empty_like(frames[0], dtype=np.float32)
    # In bands of rows, so that the copies stay small.
    bands = [slice(start, start + _ROWS) for start in range(0, len(mean), _ROWS)]
    typical = float(np.median([_spread(np.stack([f[band] for f in frames])) for band in bands]))
    for band in bands:
        stack = np.stack([frame[band] for frame in frames])
        deviation = np.abs(stack - np.median(stack, axis=0))
        sigma = np.maximum(_MAD_TO_SIGMA * np.median(deviation, axis=0), typical)
        kept = deviation <= _CLIP * sigma
        mean[band] = np.where(kept, stack, 0.0).sum(axis=0, dtype=np.float64) / kept.sum(axis=0)
    return mean


def _spread(stack: np.ndarray) -> float:
    return float(np.median(np.std(stack, axis=0, ddof=1)))


def normalize(image: np.ndarray) -> np.ndarray:
    """Return an image divided by its median; dead pixels stay near 0, for whoever divides by it to notice.

    Raises
    ------
    ValueError
        Raised if the median is not positive.
    """
    median = float(np.median(image))
    if not median > 0:
        raise ValueError(f"the median is {median:g}, which is no illumination")
    return (image / np.float32(median)).astype(np.float32, copy=False)
