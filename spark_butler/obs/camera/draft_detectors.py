"""Detectors in the draft of a camera's description.  Runs in the driver, for ``obs describe``."""

from __future__ import annotations

__all__ = ("BINNINGS", "DetectorDraft", "find_binning", "flow", "read_binning", "unbinned_size")

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from .frame_detector import MOSAIC_CARDS, MOSAIC_PATTERNS, parse_binning
from .geometry import FITS_SECTION
from .header_fields import HeaderField, HeaderValueError, as_number
from .raw_fits import JOINED

type Header = Mapping[str, Any]

BINNINGS: tuple[dict[str, Any], ...] = (
    {"keyword": "CCDSUM"},
    {"keyword": ["XBINNING", "YBINNING"], "join": " "},
    {"keyword": ["CCDXBIN", "CCDYBIN"], "join": " "},
    {"keyword": ["HBIN", "VBIN"], "join": " "},
    {"keyword": "BINNING"},
)
_SCALES = ("PIXSCALE", "SECPIX", "SECPIX1", "PLATESCL", "SCALE")
_GAINS = ("EGAIN", "GAIN", "ESO DET OUT1 CONAD")
_NOISES = ("RDNOISE", "READNOIS", "RON", "ESO DET OUT1 RON")
_SATURATIONS = ("SATURATE", "SATLEVEL")
_LARGEST_GAIN = 30.0
"""Electrons per ADU; a larger number is a setting of the camera, in steps of its own."""


class DetectorDraft:
    """Writer of the lines of a draft that describe detectors.

    Parameters
    ----------
    headers
        Headers of frames that have one size, apart from their binning.
    ask
        Function that returns the mark of a value that only the owner knows, from its key and a question.
    """

    def __init__(
        self,
        headers: Sequence[Header],
        science: Header,
        ask: Callable[[str, str], str],
        *,
        without_bias: bool,
    ):
        self._without_bias = without_bias
        self._headers = headers
        self._first = headers[0]
        self._binned = find_binning(headers) is not None
        self._ask = ask
        size = (self._first.get("NAXIS1"), self._first.get("NAXIS2"))
        self._size: tuple[Any, Any] = unbinned_size(self._first) if self._binned else size
        self._scale, self._scale_mark = self._pixel_scale(science)
        self._electronics = self._find_electronics()
        self._begun = False

    def write(self, number: int, count: int) -> Iterator[str]:
        """Yield the lines of a detector."""
        data, overscan = self._sections()
        nx, ny = data[1] - data[0] + 1, data[3] - data[2] + 1
        first, self._begun = not self._begun, True
        yield f"  - id: {number}"
        sizes = {"raw_nx": self._size[0], "raw_ny": self._size[1], "nx": nx, "ny": ny}
        for key, value in {"name": f"ccd{number}", **sizes}.items():
            yield f"    {key}: {flow(value)}"
        mark = self._scale_mark or "  # arcseconds"
        yield f"    pixel_scale: {flow(self._scale)}{mark if first else '  # as above'}"
        if count > 1:
            mark = self._ask("offset", "where is the center of each, in pixels?") if first else "  # as above"
            yield f"    offset: [0.0, 0.0]{mark}"
        if pattern := self._find_mosaic():
            yield f"    mosaic: {{pattern: {pattern}, color: G}}  # guess: the color that you want"
        yield "    amplifiers:"
        yield from self._amplifiers(data, overscan, first)

    def _amplifiers(self, data: Sequence[int], overscan: Sequence[int] | None, first: bool) -> Iterator[str]:
        # Images of one size in a file are amplifiers, which are joined from left to right.
        joined = int(self._first.get(JOINED) or 1)
        width = (data[1] - data[0] + 1) // joined
        for n in range(joined):
            start = data[0] + n * width
            part = (start, start + width - 1, *data[2:]) if joined > 1 else tuple(data)
            yield f"      - name: {flow('all' if joined == 1 else str(n + 1))}"
            yield f"        raw_data_section: {flow(_section(part))}"
            section = (1 + n * width, (n + 1) * width, 1, data[3] - data[2] + 1)
            yield f"        section: {flow(_section(section))}"
            if overscan is not None:
                yield f"        raw_overscan_section: {flow(_section(overscan))}"
            elif self._without_bias:
                mark = "  # guess: ADU of a pixel without light" if first and n == 0 else "  # as above"
                yield f"        bias_level: 0.0{mark}"
            for key, (value, mark) in self._electronics.items():
                if joined > 1 and isinstance(value, str):
                    value = f"{value}@{n + 1}"
                yield f"        {key}: {flow(value)}{mark if first and n == 0 else '  # as above'}"

    def _find_electronics(self) -> dict[str, tuple[Any, str]]:
        """Return gain, read noise and saturation with their marks; a keyword if frames differ."""
        values: dict[str, tuple[Any, str]] = {}
        for key, keywords, default, unit in (
            ("gain", _GAINS, 1.0, "electrons per ADU"),
            ("read_noise", _NOISES, 10.0, "electrons"),
            ("saturation", _SATURATIONS, self._largest_value(), "ADU"),
        ):
            for keyword in keywords:
                numbers = [as_number(each.get(keyword)) for each in self._headers]
                if not all(number and number > 0 for number in numbers):
                    continue
                if keyword == "GAIN" and ("OFFSET" in self._first or (numbers[0] or 0.0) > _LARGEST_GAIN):
                    continue  # a setting of the camera, as is the offset
                own = {as_number(v) for k, v in self._first.items() if k.startswith(f"{keyword}@")}
                if len(set(numbers)) > 1 or len(own) > 1:
                    comma = any("," in str(each.get(keyword)) for each in self._headers)
                    values[key] = (
                        {"keyword": keyword, "decimal_comma": True} if comma else keyword,
                        f"  # {unit}; frames differ",
                    )
                else:
                    values[key] = numbers[0], f"  # {unit}, by {keyword}"
                break
            else:
                values[key] = default, self._ask(key, f"how many {unit}?")
        return values

    def _largest_value(self) -> float:
        """Return a guess of the saturation: just below the largest number that a pixel can have."""
        bits, zero = self._first.get("BITPIX"), as_number(self._first.get("BZERO")) or 0.0
        if bits not in (8, 16) or self._first.get("BSCALE") not in (None, 1):
            return 1e5
        return 250.0 if bits == 8 else 60000.0 if zero > 0.0 else 32000.0

    def _pixel_scale(self, science: Header) -> tuple[float, str]:
        """Return arcseconds per pixel, and a mark if they are a guess."""
        binning = next(filter(None, (read_binning(field, science) for field in BINNINGS)), 1)
        # Of pixels as the frames have them, or of unbinned ones if frames differ.
        described = 1 if self._binned else binning
        columns = [as_number(science.get(key)) for key in ("CD1_1", "CD2_1")]
        if str(science.get("CTYPE1", "")).startswith("RA"):
            step = math.hypot(*(each or 0.0 for each in columns))
            step = step or abs(as_number(science.get("CDELT1")) or 0.0)
            if 0 < step < 1:
                return round(3600 * step * described / binning, 4), ""
        for key in _SCALES:
            if (number := as_number(science.get(key))) and 0 < number < 1000:
                # INDI, whose pixel sizes are PIXSIZE1 and PIXSIZE2, has the scale of binned pixels.
                factor = 1 if science.get("PIXSIZE1") and not self._binned else described
                guess = f"  # guess: {key}, of unbinned pixels, times {factor}" if factor > 1 else ""
                return round(number * factor, 4), guess
        size, focal = as_number(science.get("XPIXSZ")), as_number(science.get("FOCALLEN"))
        if size and focal:
            scale = 206.265 * size / focal * described / binning
            return round(scale, 4), "  # guess: from XPIXSZ and FOCALLEN"
        return 1.0, self._ask("pixel_scale", "how many arcseconds is a pixel?")

    def _sections(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Return the light-sensitive section and the overscan, as columns and rows from 1."""
        whole = (1, int(self._size[0]), 1, int(self._size[1]))
        if self._first.get(JOINED) or self._binned:
            return whole, None
        found = (_read_section(self._first.get(key)) for key in ("DATASEC", "TRIMSEC"))
        data = next(filter(None, found), whole)
        overscan = _read_section(self._first.get("BIASSEC"))
        fits = overscan is not None and overscan[2:] == data[2:] and overscan[1] <= whole[1]
        return (data if data[1] <= whole[1] and data[3] <= whole[3] else whole), overscan if fits else None

    def _find_mosaic(self) -> str | None:
        """Return the pattern of a color mosaic."""
        found = (str(self._first.get(card) or "").strip().upper() for card in MOSAIC_CARDS)
        return next((pattern for pattern in found if pattern in MOSAIC_PATTERNS), None)


def read_binning(field: Mapping[str, Any], header: Header) -> int | None:
    """Return the binning that a header has in a field, or `None`."""
    try:
        text = HeaderField.model_validate(dict(field)).text(header)
        return None if text is None else parse_binning(text, "binning")
    except HeaderValueError:
        return None


def find_binning(headers: Sequence[Header]) -> dict[str, Any] | None:
    """Return the field of the binning, if frames differ in it."""
    for field in BINNINGS:
        found = {read_binning(field, each) for each in headers}
        if None not in found and len(found) > 1:
            return field
    return None


def unbinned_size(header: Header) -> tuple[Any, Any]:
    """Return columns and rows of an image in unbinned pixels."""
    binning = next(filter(None, (read_binning(field, header) for field in BINNINGS)), 1)
    columns, rows = header.get("NAXIS1"), header.get("NAXIS2")
    return (columns or 0) * binning, (rows or 0) * binning


def flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _section(bounds: Sequence[int]) -> str:
    return f"[{bounds[0]}:{bounds[1]}, {bounds[2]}:{bounds[3]}]"


def _read_section(value: Any) -> tuple[int, ...] | None:
    """Return a section of a header as columns and rows from 1."""
    match = FITS_SECTION.fullmatch(str(value or ""))
    return tuple(map(int, match.groups())) if match else None
