"""The mask planes of this pipeline's images: a subset of those of Rubin's visit images, by the same names."""

from __future__ import annotations

__all__ = ("make_mask_schema", "plane_union")

import numpy as np
import numpy.typing as npt
from lsst.images import Mask, MaskSchema, get_legacy_visit_image_mask_planes

_PLANES = ("BAD", "SAT", "CR", "EDGE", "DETECTED", "NO_DATA")


def make_mask_schema() -> MaskSchema:
    """Return the planes, under Rubin's names and with Rubin's descriptions."""
    planes = get_legacy_visit_image_mask_planes()
    return MaskSchema([planes[name] for name in _PLANES])


def plane_union(mask: Mask, *planes: str) -> npt.NDArray[np.bool_]:
    """Return where any of the planes is set."""
    return np.asarray((mask.array & mask.schema.bitmask(*planes)).any(axis=-1))
