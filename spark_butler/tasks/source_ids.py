"""Identifiers that are unique among all sources of an instrument."""

from __future__ import annotations

__all__ = ("make_source_ids",)

import numpy as np
import numpy.typing as npt
from lsst.daf.butler import DataCoordinate
from lsst.pipe.base import ObservationDimensionPacker

_BITS = 63


def make_source_ids(data_id: DataCoordinate, count: int) -> npt.NDArray[np.int64]:
    """Return identifiers: visit and detector in the upper bits, a counter from 1 in the lower ones.

    Parameters
    ----------
    data_id
        Expanded data ID with visit and detector.
    count
        Number of sources.

    Raises
    ------
    OverflowError
        Raised if the instrument's largest visit and detector leave too few bits for so many sources.
    """
    packer = ObservationDimensionPacker(data_id, is_exposure=False)
    free = _BITS - packer.maxBits
    if count >= 1 << max(free, 0):
        raise OverflowError(
            f"{count} sources do not fit the {free} bits that visit_max and detector_max of "
            f"{data_id['instrument']} leave; give the camera's description a smaller visit_max"
        )
    packed = packer.pack(data_id)
    assert isinstance(packed, int), "A tuple is returned only on request."
    start = packed << free
    return np.arange(1, count + 1, dtype=np.int64) + start
