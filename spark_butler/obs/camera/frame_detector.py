"""The detector of one frame, by its header and in its binned pixels.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = (
    "MOSAIC_CARDS",
    "MOSAIC_PATTERNS",
    "bin_detector",
    "check_size",
    "describe_frame",
    "linearize",
    "parse_binning",
    "with_photon_transfer",
)

import math
import re
from collections.abc import Mapping
from typing import Any

import astropy.table
import numpy as np
import numpy.typing as npt
import pydantic

from .description import CameraDescription
from .detectors import AmplifierDescription, DetectorDescription
from .header_fields import HeaderValueError
from .raw_fits import JOINED

_LIMITS = {
    "gain": (1e-4, 1e4, "electrons per ADU"),
    "read_noise": (0.0, 1e4, "electrons"),
    "saturation": (1.0, 1e10, "ADU"),
}
MOSAIC_CARDS = ("BAYERPAT", "COLORTYP", "CFAPAT", "FILTER")
MOSAIC_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")


def describe_frame(
    camera: CameraDescription, detector: int, header: Mapping[str, Any]
) -> DetectorDescription:
    """Return a detector with the gain, read noise, saturation and binning of one frame.

    Raises
    ------
    HeaderValueError
        Raised if the header lacks a value or has an impossible one, or the pixels are those of a color mosaic
        that the description does not have.
    """
    described = camera.get_detector(detector)
    if described.mosaic is None and not described.monochrome:
        _check_monochrome(header, described)
    if any(amplifier.cards for amplifier in described.amplifiers):
        amplifiers = tuple(_read_electronics(each, header) for each in described.amplifiers)
        described = described.model_copy(update={"amplifiers": amplifiers})
    return bin_detector(camera, described, header)


def bin_detector(
    camera: CameraDescription, described: DetectorDescription, header: Mapping[str, Any]
) -> DetectorDescription:
    """Return a detector in the pixels of one image, whose binning is the camera's field ``binning``."""
    binning, field = 1, camera.header.binning
    if field is not None and (text := field.text(header)) is not None:
        binning = parse_binning(text, " or ".join(field.keyword))
    try:
        return described.binned(binning)
    except pydantic.ValidationError as err:
        reason = "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in err.errors())
        raise HeaderValueError(
            f"binning = {binning} does not fit the sections of detector {described.name}: {reason}"
        ) from None
    except ValueError as err:
        raise HeaderValueError(str(err)) from None


def with_photon_transfer(detector: DetectorDescription, table: astropy.table.Table) -> DetectorDescription:
    """Return a frame's detector with the measured gains and read noises."""
    measured = {str(row["amplifier"]): row for row in table}
    pixels = 1 if detector.mosaic is None else len(detector.mosaic.places)
    amplifiers = []
    for amplifier in detector.amplifiers:
        if (row := measured.get(amplifier.name)) is None:
            raise HeaderValueError(
                f"ptc has no amplifier {amplifier.name} of detector {detector.name}; it has "
                f"{', '.join(measured)}: measure it again, with this description"
            )
        noise = float(row["noise"]) / math.sqrt(pixels)
        amplifiers.append(amplifier.model_copy(update={"gain": float(row["gain"]), "read_noise": noise}))
    return detector.model_copy(update={"amplifiers": tuple(amplifiers)})


def linearize(
    image: npt.NDArray[np.float32], table: astropy.table.Table, detector: DetectorDescription
) -> None:
    """Make an assembled image in ADU above bias proportional to the light, in place.

    The dataset ``linearizer`` has factors of the powers of the signal that are added to it.
    """
    rows = {str(row["amplifier"]): row for row in table}
    powers = [int(name[1:]) for name in table.colnames if re.fullmatch(r"c\d+", name)]
    for amplifier in detector.amplifiers:
        if (row := rows.get(amplifier.name)) is not None:
            signal = image[amplifier.section.slices]
            signal += sum(np.float32(row[f"c{power}"]) * signal**power for power in powers)


def check_size(header: Mapping[str, Any], detector: DetectorDescription) -> None:
    """Raise if a frame does not have the described size of its detector."""
    size, described = (header.get("NAXIS1"), header.get("NAXIS2")), (detector.raw_nx, detector.raw_ny)
    if size != described and header.get(JOINED):
        raise HeaderValueError(
            f"{header[JOINED]} HDUs hold images of the same size, {size[0]} x {size[1]} pixels side by side; "
            f"raw_nx and raw_ny of detector {detector.name} are {described[0]} x {described[1]}: describe "
            "the amplifiers of all of them, as one image joined from left to right"
        )
    if size != described:
        raise HeaderValueError(
            f"the image has {size[0]} x {size[1]} pixels; raw_nx and raw_ny of detector {detector.name} are "
            f"{described[0]} x {described[1]}: a field binning of the header says by what frames are binned, "
            "and windowed frames need a description of their own (tell them apart by match)"
        )


def _read_electronics(amplifier: AmplifierDescription, header: Mapping[str, Any]) -> AmplifierDescription:
    values: dict[str, Any] = {}
    for key, field in amplifier.cards.items():
        low, high, unit = _LIMITS[key]
        number = field.number(header)
        origin = " or ".join(field.keyword) or "constant"
        if number is None:
            raise HeaderValueError(
                f"{key} of amplifier {amplifier.name}: {origin} is missing or blank in the header; "
                f"give it a default, or a number of {unit}"
            )
        if not low <= number <= high:
            raise HeaderValueError(
                f"{key} of amplifier {amplifier.name}: {origin} gives {number:g} {unit}, which is not within "
                f"{low:g} and {high:g}; give a number in the description if the card means something else"
            )
        values[key] = number
    return amplifier.model_copy(update={**values, "cards": {}})


def parse_binning(text: str, origin: str) -> int:
    """Return the pixels along each side of a binned one, from a card such as ``2``, ``'2 2'`` or ``2x2``."""
    match = re.fullmatch(r"\s*(\d+)(?:\.0*)?(?:[^\d.]+(\d+)(?:\.0*)?)?\s*", text)
    along_x, along_y = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= along_x <= 64:
        raise HeaderValueError(
            f"binning: {origin} = {text!r} is not a number of pixels, such as 2, '2 2' or 2x2"
        )
    if along_x != along_y:
        raise HeaderValueError(
            f"binning: {origin} = {text!r} makes pixels that are not square, "
            "and frames of such can't be processed"
        )
    return along_x


def _check_monochrome(header: Mapping[str, Any], detector: DetectorDescription) -> None:
    for card in MOSAIC_CARDS:
        pattern = str(header.get(card) or "").strip().upper()
        if pattern in MOSAIC_PATTERNS:
            raise HeaderValueError(
                f"{card} = {pattern!r}: the pixels are a color mosaic, and detector {detector.name} is "
                f"described without one; add 'mosaic: {{pattern: {pattern}, color: G}}' to it, with the "
                "color that you want, or 'monochrome: true' if one color was extracted before"
            )
