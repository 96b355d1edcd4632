"""Pixel sections of raw and assembled images."""

from __future__ import annotations

__all__ = ("FITS_SECTION", "Section")

import re
from typing import Any, Self

import pydantic
from lsst.images import Box

FITS_SECTION = re.compile(r"\s*\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]\s*")
"""Form of sections in headers: columns, then rows, from 1, both bounds included."""


class Section(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A rectangle of pixels, zero-based and half-open.

    In YAML it is written as in FITS headers, ``"[x1:x2, y1:y2]"``: one-based and inclusive.
    """

    x_start: int = pydantic.Field(ge=0)
    x_stop: int
    y_start: int = pydantic.Field(ge=0)
    y_stop: int

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_fits(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if (match := FITS_SECTION.fullmatch(value)) is None:
            raise ValueError(f"{value!r} is not a section like '[1:512, 1:1024]' (x1:x2, y1:y2, from 1)")
        x1, x2, y1, y2 = (int(group) for group in match.groups())
        if x1 < 1 or y1 < 1:
            raise ValueError(f"{value!r} must count pixels from 1")
        return {"x_start": x1 - 1, "x_stop": x2, "y_start": y1 - 1, "y_stop": y2}

    @pydantic.model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.x_stop <= self.x_start or self.y_stop <= self.y_start:
            raise ValueError(f"section {self} has no pixels; write the lower bound first")
        return self

    def __str__(self) -> str:
        return f"[{self.x_start + 1}:{self.x_stop}, {self.y_start + 1}:{self.y_stop}]"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self.y_stop - self.y_start, self.x_stop - self.x_start

    def scaled(self, binning: int, *, outward: bool = False) -> Section:
        """Return the section in binned pixels; ``outward`` keeps binned pixels that are partly inside."""
        x_start, y_start = self.x_start // binning, self.y_start // binning
        rows, columns = self.shape
        x_stop, y_stop = x_start + columns // binning, y_start + rows // binning
        if outward:
            x_stop, y_stop = -(-self.x_stop // binning), -(-self.y_stop // binning)
        return Section.model_construct(x_start=x_start, x_stop=x_stop, y_start=y_start, y_stop=y_stop)

    def cropped(self, nx: int, ny: int) -> Section:
        """Return the part of the section in an image of a size; at least its last pixel."""
        x_stop, y_stop = min(self.x_stop, nx), min(self.y_stop, ny)
        x_start, y_start = min(self.x_start, x_stop - 1), min(self.y_start, y_stop - 1)
        return Section(x_start=x_start, x_stop=x_stop, y_start=y_start, y_stop=y_stop)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices, to index an array of the whole image with."""
        return slice(self.y_start, self.y_stop), slice(self.x_start, self.x_stop)

    @property
    def bbox(self) -> Box:
        """The section as a `lsst.images.Box`."""
        return Box.factory[self.y_start : self.y_stop, self.x_start : self.x_stop]

    def fits_in(self, nx: int, ny: int) -> bool:
        """Return whether the section lies in an image of ``nx`` columns and ``ny`` rows."""
        return self.x_stop <= nx and self.y_stop <= ny

    def overlaps(self, other: Section) -> bool:
        """Return whether the two sections share a pixel."""
        parts = zip(self.slices, other.slices, strict=True)
        return all(a.start < b.stop and b.start < a.stop for a, b in parts)
