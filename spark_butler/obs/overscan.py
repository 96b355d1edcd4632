"""Overscan: the level that raw pixels have without light.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = ["overscan_level"]

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from .camera.description import AmplifierDescription, OverscanDescription

type Image32 = npt.NDArray[np.float32]


def overscan_level(
    raw: npt.NDArray[Any], amplifier: AmplifierDescription, model: OverscanDescription
) -> tuple[float, float, Image32]:
    """Measure the overscan of an amplifier that has one, in ADU.

    Parameters
    ----------
    model
        How the level changes from row to row.

    Returns
    -------
    level, spread
        Median of the overscan and its scatter.
    values
        What to subtract from the data section: one value, one per row, or one per column if the overscan lies
        above or below the data.
    """
    assert amplifier.raw_overscan_section is not None, "The caller has looked."
    overscan = raw[amplifier.raw_overscan_section.slices].astype(np.float32)
    beside = amplifier.raw_overscan_section.slices[0] == amplifier.raw_data_section.slices[0]
    if not beside:
        overscan = overscan.T
    level = float(np.median(overscan))
    spread = 1.4826 * float(np.median(np.abs(overscan - level)))
    if model.fit == "constant":
        # The mean within three sigma, because a median of integers has steps of half an ADU.
        near = np.abs(overscan - level) <= 3.0 * max(spread, 1.0)
        return level, spread, np.full((1, 1), overscan[near].mean(), dtype=np.float32)
    # Deviant pixels (trails of saturated stars, cosmic rays) are left out, then rows are averaged.
    rows = np.median(overscan, axis=1, keepdims=True)
    near = np.abs(overscan - rows) <= 3.0 * max(spread, 1.0)
    per_row = np.where(near, overscan, 0.0).sum(axis=1) / np.maximum(near.sum(axis=1), 1)
    if (half := min(model.smooth // 2, len(per_row) - 1)) > 0:
        # An odd reflection continues a drift beyond the first and the last row.
        padded = np.pad(per_row, half, mode="reflect", reflect_type="odd")
        per_row = scipy.ndimage.median_filter(padded, 2 * half + 1, mode="nearest")[half:-half]
    line = per_row.astype(np.float32)
    return level, spread, line[:, None] if beside else line[None, :]
