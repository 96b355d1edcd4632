"""Detectors and amplifiers of a camera's description.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = ("AmplifierDescription", "DetectorDescription", "MosaicDescription", "OverscanDescription")

import math
from typing import Any, Literal, Self

import numpy.typing as npt
import pydantic
from lsst.images import Box

from .geometry import Section
from .header_fields import HeaderField

_ELECTRONICS = ("gain", "read_noise", "saturation")


class AmplifierDescription(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One readout channel of a detector."""

    name: str
    raw_data_section: Section
    """Light-sensitive pixels, in the raw image."""
    raw_overscan_section: Section | None = None
    """Overscan or prescan on any side, in the raw image: the rows, or the columns, of the data section."""
    section: Section
    """Where the data section goes in the assembled image."""
    transpose: bool = False
    """Whether the data section's rows become columns, before it is mirrored."""
    mirror: Literal["none", "x", "y", "xy"] = "none"
    """Axes of the assembled image along which the amplifier was read out backwards."""
    gain: float = pydantic.Field(gt=0)
    """Electrons per ADU."""
    read_noise: float = pydantic.Field(ge=0)
    """Electrons, RMS."""
    saturation: float = pydantic.Field(gt=0)
    """Raw ADU (bias level included) at and above which a pixel is saturated."""
    bias_level: float = 0.0
    """Raw ADU of a pixel without light and dark current, if there is no overscan to measure it in."""
    cards: dict[Literal["gain", "read_noise", "saturation"], HeaderField] = {}
    """Header fields that a frame's own values come from; the numbers above are no more than placeholders."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _separate_cards(cls, content: Any) -> Any:
        """Accept a header field where a number is expected: ``gain: EGAIN``."""
        if not isinstance(content, dict):
            return content
        content, cards = dict(content), dict(content.get("cards") or {})
        for key in _ELECTRONICS:
            value = content.get(key)
            if isinstance(value, dict) or (isinstance(value, str) and not _is_number(value)):
                cards[key], content[key] = value, 1.0
        return {**content, "cards": cards}

    @pydantic.model_validator(mode="after")
    def _sections_agree(self) -> Self:
        step = -1 if self.transpose else 1
        if self.raw_data_section.shape[::step] != self.section.shape:
            raise ValueError(
                f"raw_data_section {self.raw_data_section} and section {self.section} differ in size"
            )
        overscan = self.raw_overscan_section
        if overscan is not None and self.bias_level != 0.0:
            raise ValueError(f"bias_level is {self.bias_level:g}, but raw_overscan_section measures it")
        if overscan is not None:
            if not any(a == b for a, b in zip(overscan.slices, self.raw_data_section.slices, strict=True)):
                raise ValueError(
                    f"raw_overscan_section {overscan} must have the rows, or the columns, of the "
                    f"raw_data_section {self.raw_data_section}"
                )
            if overscan.overlaps(self.raw_data_section):
                raise ValueError(
                    f"raw_overscan_section {overscan} overlaps the raw_data_section {self.raw_data_section}"
                )
        return self

    def assembled(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return pixels of the data section in the orientation of the assembled image."""
        pixels = pixels.T if self.transpose else pixels
        return pixels[:: -1 if "y" in self.mirror else 1, :: -1 if "x" in self.mirror else 1]


class OverscanDescription(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Model of the overscan, the same for raw frames of masters and of science exposures."""

    fit: Literal["row", "constant"] = "row"
    """``row`` subtracts the mean of each row (of each column, where the overscan is above or below), smoothed
    along the column; ``constant`` one number."""
    smooth: int = pydantic.Field(default=51, ge=1)
    """Rows of the median filter that ``row`` smooths with; 1 does not smooth."""


class MosaicDescription(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Color filters on the pixels of a detector, in cells of two by two."""

    pattern: Literal["RGGB", "BGGR", "GRBG", "GBRG"]
    """Colors of the first two pixels of the assembled image's first row, then of its second row."""
    color: Literal["R", "G", "B"]
    """Color that is kept, at half the size; green is the sum of both pixels of a cell."""

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Row and column in a cell of each pixel of the color."""
        return tuple(divmod(number, 2) for number, color in enumerate(self.pattern) if color == self.color)

    def extract(self, pixels: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return the pixels of the color: one image of half the size for each place in a cell."""
        return [pixels[row::2, column::2] for row, column in self.places]


class DetectorDescription(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One detector: its size, its place in the focal plane and its amplifiers."""

    id: int = pydantic.Field(ge=0)
    name: str = pydantic.Field(min_length=1, max_length=32)
    purpose: str = "SCIENCE"
    raw_nx: int = pydantic.Field(gt=0)
    raw_ny: int = pydantic.Field(gt=0)
    """Columns and rows of the raw image, overscan included."""
    nx: int = pydantic.Field(gt=0)
    ny: int = pydantic.Field(gt=0)
    """Columns and rows of the assembled image."""
    pixel_scale: float = pydantic.Field(gt=0)
    """Arcseconds per pixel."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Focal-plane x, y of the detector's center from the boresight, in pixels."""
    rotation: float = 0.0
    """Anticlockwise rotation of the detector's x axis from the focal plane's, in degrees."""
    amplifiers: tuple[AmplifierDescription, ...] = pydantic.Field(min_length=1)
    mosaic: MosaicDescription | None = None
    """Color filters on the pixels, and which color is kept."""
    monochrome: bool = False
    """Whether the pixels are of one color, though a header names a pattern of colors."""
    overscan: OverscanDescription = OverscanDescription()
    defects: tuple[Section, ...] = ()
    """Bad columns and regions, in the assembled image."""

    @pydantic.model_validator(mode="after")
    def _amplifiers_fit(self) -> Self:
        names = [amplifier.name for amplifier in self.amplifiers]
        if len(set(names)) != len(names):
            raise ValueError(f"amplifier names {names} are not unique")
        covered = 0
        for index, amplifier in enumerate(self.amplifiers):
            where = f"amplifier {amplifier.name!r}:"
            for label in ("raw_data_section", "raw_overscan_section"):
                section = getattr(amplifier, label)
                if section is not None and not section.fits_in(self.raw_nx, self.raw_ny):
                    raise ValueError(
                        f"{where} {label} {section} leaves the raw image of {self.raw_nx} x {self.raw_ny}"
                    )
            if not amplifier.section.fits_in(self.nx, self.ny):
                raise ValueError(
                    f"{where} section {amplifier.section} leaves the {self.nx} x {self.ny} detector"
                )
            for other in self.amplifiers[:index]:
                if amplifier.section.overlaps(other.section):
                    raise ValueError(f"{where} section {amplifier.section} overlaps that of {other.name!r}")
            covered += amplifier.section.shape[0] * amplifier.section.shape[1]
        if covered != self.nx * self.ny:
            raise ValueError(f"the amplifiers cover {covered} of {self.nx * self.ny} pixels of the detector")
        if self.mosaic is not None and not all(
            bound % 2 == 0
            for amplifier in self.amplifiers
            for part in amplifier.section.slices
            for bound in (part.start, part.stop)
        ):
            raise ValueError("with a mosaic, each section must begin at an odd pixel and end at an even one")
        for defect in self.defects:
            if not defect.fits_in(self.nx, self.ny):
                raise ValueError(f"defect {defect} leaves the {self.nx} x {self.ny} detector")
        return self

    @pydantic.model_validator(mode="after")
    def _colors_agree(self) -> Self:
        if self.mosaic is not None and self.monochrome:
            raise ValueError("with a mosaic, the pixels are not monochrome")
        return self

    @property
    def assembled(self) -> DetectorDescription:
        """The detector of an assembled image: for a color mosaic, the pixels of one color."""
        if self.mosaic is None:
            return self
        # Two greens are added: the noise of both is in the sum.
        noise = math.sqrt(len(self.mosaic.places))
        amplifiers = []
        for amplifier in self.amplifiers:
            section = amplifier.section.scaled(2)
            plain: dict[str, Any] = {"transpose": False, "mirror": "none", "bias_level": 0.0}
            plain |= {"section": section, "raw_data_section": section, "raw_overscan_section": None}
            plain["read_noise"] = amplifier.read_noise * noise
            amplifiers.append(amplifier.model_copy(update=plain))
        nx, ny = self.nx // 2, self.ny // 2
        return self._scaled(2, amplifiers, nx=nx, ny=ny, raw_nx=nx, raw_ny=ny, mosaic=None)

    def binned(self, binning: int) -> Self:
        """Return the detector in pixels that are ``binning`` of the description's along each side.

        Raises
        ------
        ValueError
            Raised if amplifiers don't begin and end at binned pixels, or a color mosaic was binned.
        """
        if binning == 1:
            return self
        if self.mosaic is not None:
            raise ValueError(f"pixels of a color mosaic were binned by {binning}, which mixes the colors")
        sections = ("section", "raw_data_section", "raw_overscan_section")
        amplifiers = [
            amplifier.model_copy(
                update={
                    key: section.scaled(binning)
                    for key in sections
                    if (section := getattr(amplifier, key)) is not None
                }
            )
            for amplifier in self.amplifiers
        ]
        sizes = {key: getattr(self, key) // binning for key in ("raw_nx", "raw_ny", "nx", "ny")}
        return type(self).model_validate(self._scaled(binning, amplifiers, **sizes).model_dump())

    def _scaled(self, step: int, amplifiers: list[AmplifierDescription], **changed: Any) -> Self:
        """Return the detector in pixels that are ``step`` times as wide and high, with other changes."""
        defects = (defect.scaled(step, outward=True) for defect in self.defects)
        changed |= {
            "amplifiers": tuple(amplifiers),
            "pixel_scale": step * self.pixel_scale,
            "offset": (self.offset[0] / step, self.offset[1] / step),
            "defects": tuple(defect.cropped(changed["nx"], changed["ny"]) for defect in defects),
        }
        return self.model_copy(update=changed)

    @property
    def bbox(self) -> Box:
        """Bounding box of the assembled image; its first pixel is (0, 0)."""
        return Box.factory[0 : self.ny, 0 : self.nx]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
