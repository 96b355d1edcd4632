"""Planes of mask bits and of noise beside the pixels of raw files.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = ("MaskPlaneDescription", "NoisePlaneDescription", "PlanesDescription")

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from .header_fields import HeaderValueError
from .raw_fits import COMPANIONS, PLANES

type _Bit = Annotated[int, pydantic.Field(ge=0, le=62)]


def _check_name(name: str) -> str:
    if name.upper() not in COMPANIONS:
        raise ValueError(f"expected one of {', '.join(sorted(COMPANIONS))}")
    return name.upper()


type _Extension = Annotated[str, pydantic.AfterValidator(_check_name)]


class MaskPlaneDescription(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A plane of bits."""

    extension: _Extension
    """Name (``EXTNAME``) of the HDU."""
    bits: dict[Literal["BAD", "SATURATED", "NO_DATA"], tuple[_Bit, ...]] = {}
    """Bits, counted from 0, that set each mask plane; other bits are ignored.  Without it, a pixel is bad if
    the plane is not 0."""

    def split(self, plane: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]:
        """Return the pixels of each mask plane."""
        if not self.bits:
            return {"BAD": ~(plane == 0)}
        whole = np.nan_to_num(plane).astype(np.int64)
        return {name: (whole & sum(1 << bit for bit in bits)) != 0 for name, bits in self.bits.items()}


class NoisePlaneDescription(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A plane of the pixels' noise."""

    extension: _Extension
    """Name (``EXTNAME``) of the HDU."""
    form: Literal["variance", "sigma", "weight"]
    """Variance in ADU squared, standard deviation in ADU, or inverse variance."""

    def to_variance(self, plane: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the variance in ADU squared; NaN for pixels without one."""
        values = plane.astype(np.float32)
        if self.form == "sigma":
            values = np.where(values > 0.0, values**2, np.nan)
        elif self.form == "weight":
            values = np.divide(1.0, values, out=np.full_like(values, np.nan), where=values > 0.0)
        return np.where(values > 0.0, values, np.float32(np.nan))


class PlanesDescription(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Planes that science frames have beside their pixels."""

    mask: MaskPlaneDescription | None = None
    noise: NoisePlaneDescription | None = None

    def check(self, header: Mapping[str, Any]) -> None:
        """Raise if a science frame lacks a plane."""
        present = str(header.get(PLANES) or "").split()
        for plane in (self.mask, self.noise):
            if plane is not None and plane.extension not in present:
                raise HeaderValueError(
                    f"no extension {plane.extension}, which planes of the camera's description names; the "
                    f"file has {', '.join(present) or 'none of this kind'}"
                )
