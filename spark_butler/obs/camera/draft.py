"""Draft of a camera's description, from the headers of its files.  Runs in the process of the command."""

from __future__ import annotations

__all__ = ("Draft", "draft_description")

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import astropy.time
import yaml
from lsst.resources import ResourcePath

from ...errors import UserError
from .description import CameraDescription
from .draft_detectors import DetectorDraft, find_binning, flow, unbinned_size
from .exposures import describe_raw
from .header_contradictions import (
    DAYS,
    EQUINOXES,
    EXPOSURES,
    FRAMES,
    MOMENTS,
    TIMES,
    check_equinox,
    check_time,
    find_unit,
    is_in_hours,
)
from .header_fields import HeaderField, HeaderValueError, as_number
from .raw_fits import PLANES, display_name, read_raw_header

type Header = Mapping[str, Any]

_MOST_QUESTIONS = 3
_MATCH = ("CAMSN", "SERNO", "SERIALNO", "DETSERNO", "INSTRUME", "CAMERA", "DETECTOR", "TELESCOP")
_TYPES = (
    *("IMAGETYP", "OBSTYPE", "IMGTYPE", "IMAGETYPE", "EXPTYPE", "FRAME", "DATA-TYP"),
    *("ESO DPR TYPE", "ESO GEN EXPO TYPE"),
)
_KINDS = {
    "bias": ("bias", "zero"),
    "dark": ("dark",),
    "flat": ("flat",),
    "focus": ("focus",),
    "science": ("light", "sci", "object", "target"),
}
_DAY_LAYOUTS = ("%d/%m/%y", "%d/%m/%Y", "%Y/%m/%d", "%Y%m%d", "%Y-%m-%dT00:00:00")
_TIME_LAYOUTS = ("%H:%M:%S", "%H:%M:%S.%f", "%H:%M")
_NUMBERS = ("EXPID", "EXPNUM", "ESO GEN EXPO NO", "FRAMENUM", "RUNNO")
_POSITIONS = (
    ("RA", "DEC"),
    ("OBJCTRA", "OBJCTDEC"),
    ("TELRA", "TELDEC"),
    ("RA-MNT", "DEC-MNT"),
    ("RA_OBJ", "DEC_OBJ"),
    ("CRVAL1", "CRVAL2"),
)
_FILTERS = (
    *("FILTER", "FILTER1", "FILTER2", "FILTER3", "FILTERS", "FILTNAME", "FILTERID"),
    *("ESO INS FILT1 NAME", "ESO INS OPTI-7 NAME"),
)
_NO_FILTERS = frozenset({"air", "blank", "clear", "empty", "free", "none", "open"})
_TARGETS = ("OBJECT", "TARGET", "FIELD")
_DETECTORS = ("DETID", "CCDNUM", "CCDID", "CHIPID", "DETNUM")


@dataclasses.dataclass
class Draft:
    """A draft, with open questions and files that it does not fit."""

    text: str
    """The description, as YAML."""

    questions: list[str]
    """Questions that only the owner of the camera can answer; their lines are marked ``QUESTION``."""

    failures: dict[str, str]
    """Reason for each file that the draft does not fit."""


def draft_description(files: Iterable[ResourcePath], *, name: str | None = None) -> Draft:
    """Draft the description of the camera of some files.

    Parameters
    ----------
    files
        Raw frames of all kinds, of one camera.
    name
        Name of the instrument; by default from the headers.
    """
    headers: dict[str, Header] = {}
    failures: dict[str, str] = {}
    uris = {display_name(uri): uri for uri in files}
    for file, uri in uris.items():
        try:
            headers[file] = read_raw_header(uri)
        except UserError as err:
            failures[file] = str(err)
    if not headers:
        raise UserError(next(iter(failures.values()), "no files were given"))
    writer = _Writer(list(headers.values()), name)
    text = writer.write()
    camera = CameraDescription.from_dict(yaml.safe_load(text), origin="the draft")
    for file, header in headers.items():
        try:
            if (mismatch := camera.mismatch(header)) is not None:
                raise HeaderValueError(mismatch)
            describe_raw(uris[file], header, camera)
        except HeaderValueError as err:
            failures[file] = f"{file}: {err}"
    return Draft(text, writer.questions, failures)


class _Writer:
    """Writer of a draft, which marks guesses and unknown values."""

    def __init__(self, headers: Sequence[Header], name: str | None):
        # Binned and unbinned frames are of one camera if their sizes differ only by the binning.
        sizes = Counter(unbinned_size(header) for header in headers)
        self.size: tuple[Any, Any] = sizes.most_common(1)[0][0]
        self.headers = [each for each in headers if unbinned_size(each) == self.size]
        self.first = self.headers[0]
        self.questions: list[str] = []
        self.lines: list[str] = []
        self.name = name
        self.type_keyword: str | None = None
        self.filter_keyword: str | None = None
        self.detector_keyword: str | None = None

    def write(self) -> str:
        """Return the draft."""
        self._write_identity()
        kind = self._find_kinds()
        science = [each for each in self.headers if kind(each) == "science"] or self.headers
        self._write_filters([each for each in self.headers if kind(each) not in ("bias", "dark")] or science)
        self._write_types(kind)
        self._write_header(science)
        if present := science[0].get(PLANES):
            self.lines.append(
                f"# Beside the pixels are {present}; to use them, tell their meaning by planes."
            )
        self._write_detectors(science, without_bias=all(kind(each) != "bias" for each in self.headers))
        return "\n".join(self.lines) + "\n"

    def _ask(self, key: str, question: str) -> str:
        """Return the mark of a value that only the owner knows; after three, the mark of a guess."""
        if len(self.questions) >= _MOST_QUESTIONS:
            return f"  # guess: {question}"
        self.questions.append(f"{key}: {question}")
        return f"  # QUESTION: {question}"

    def _add(self, key: str, value: Any, mark: str = "") -> None:
        indent = len(key) - len(key.lstrip())
        self.lines.append(f"{' ' * indent}{key.strip()}: {flow(value)}{mark}")

    def _present(self, keywords: Iterable[str], headers: Sequence[Header] | None = None) -> list[str]:
        """Return the keywords that have a value in all headers."""
        return [
            key
            for key in keywords
            if all(HeaderField(keyword=(key,)).sources(h) for h in headers or self.headers)
        ]

    def _write_identity(self) -> None:
        same = [key for key in self._present(_MATCH) if len({str(each[key]) for each in self.headers}) == 1]
        label = str(self.first.get("INSTRUME") or self.first.get("TELESCOP") or "MyCamera")
        found = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-")
        found = found if re.match("[A-Za-z]", found) else f"Camera-{found}"
        self._add("name", self.name or found[:32].rstrip("-"))
        self.lines.append("east: left  # guess: where east is when the top of the image is north")
        chosen = same[:1] + [key for key in same[1:] if key == "INSTRUME"]
        self._add("match", {key: f"^{re.escape(str(self.first[key]).strip())}$" for key in chosen})

    def _find_kinds(self) -> Callable[[Header], str]:
        """Choose the keyword of the image type, and return the values that identify kinds of frames."""

        def classify(text: Any) -> str:
            words = str(text).lower()
            kinds = (kind for kind, parts in _KINDS.items() if any(part in words for part in parts))
            return next(kinds, "unknown")

        for key in self._present(_TYPES):
            if {classify(each[key]) for each in self.headers} != {"unknown"}:
                self.type_keyword = key
                return lambda header: classify(header[key])
        return lambda header: "science"

    def _write_filters(self, headers: Sequence[Header]) -> None:
        present = self._present(_FILTERS, headers)
        # Of several wheels, one that has a filter in the light.
        used = (k for k in present if {str(h[k]).strip().lower() for h in headers} - _NO_FILTERS)
        self.filter_keyword = next(used, next(iter(present), None))
        if self.filter_keyword is None:
            names, mark = ["clear"], self._ask("filters", "the headers name no filter; which one is it?")
        else:
            names, mark = sorted({str(each[self.filter_keyword]).strip() for each in headers}), ""
        self.lines.append("filters:")
        for each in names:
            band = each if re.fullmatch(r"[A-Za-z]\w{0,31}", each) else "other"
            described: dict[str, Any] = {"name": each[:32], "band": band}
            if each != each[:32]:
                described["header_values"] = [each]
            guess = "" if each in "ugrizyUBVRI" else "  # guess: the band"
            self.lines.append(f"  - {flow(described)}{mark or guess}")

    def _write_types(self, kind: Callable[[Header], str]) -> None:
        types: dict[str, list[str]] = {}
        for each in self.headers:
            value = str(each[self.type_keyword]).strip() if self.type_keyword else "light"
            if value.upper() not in (text.upper() for text in types.setdefault(kind(each), [])):
                types[kind(each)].append(value)
        types.setdefault("science", ["light"])
        self._add("image_types", types)
        found = [each for each in ("bias", "dark", "flat") if each in types]
        mark = "" if found else "  # e.g. [bias, dark, flat], if there are such frames"
        self._add("calibrations", found, mark)

    def _write_header(self, science: Sequence[Header]) -> None:
        self.lines.append("header:")
        time, time_mark = self._find_time()
        number = next((key for key in _NUMBERS if self._can_read({"keyword": key}, "integer")), None)
        if number is not None:
            self._add("  exposure_id", number)
        else:
            self._add("  exposure_id", {**time, "date_id": "%y%m%d%H%M%S"}, "  # the time as a number")
        chips = (key for key in _DETECTORS if self._can_read({"keyword": key}, "integer"))
        several = (key for key in chips if len({each[key] for each in self.headers}) > 1)
        self.detector_keyword = next(several, None)
        self._add("  detector", self.detector_keyword or {"constant": 0})
        self._add("  image_type", self.type_keyword or {"constant": "light"})
        self._add("  date_begin", _short(time), time_mark)
        seconds = self._number(EXPOSURES)
        mark = "" if seconds else self._ask("exposure_time", "the headers have none; how many seconds?")
        self._add("  exposure_time", _short(seconds or {"constant": 1.0}), mark)
        self._add("  physical_filter", self.filter_keyword or {"constant": "clear"})
        if binning := find_binning(self.headers):
            self._add("  binning", _short(binning))
        self._write_position(science)
        if equinox := self._find_equinox(science, HeaderField.model_validate(time)):
            self._add("  equinox", _short(equinox), "  # of ra and dec")
        if target := self._present(_TARGETS, science):
            self._add("  target", target[0])

    def _write_position(self, science: Sequence[Header]) -> None:
        for ra, dec in _POSITIONS:
            if len(self._present((ra, dec), science)) < 2:
                continue
            if ra == "CRVAL1" and not str(self.first.get("CTYPE1", "")).startswith("RA"):
                continue
            plain = HeaderField(keyword=(ra,))
            is_text = any(as_number(each[ra]) is None for each in science)
            in_hours = all(is_in_hours(each, plain) for each in science)
            for more in ({}, {"decimal_comma": True}):
                field = {"keyword": ra, **({"unit": "hour"} if in_hours else {}), **more}
                other = {"keyword": dec, **more}
                if self._can_read(field, "angle", science) and self._can_read(other, "angle", science):
                    certain = is_text or in_hours or ra == "CRVAL1"
                    mark = "" if certain else "  # guess: degrees; else unit: hour"
                    self._add("  ra", _short(field), mark)
                    self._add("  dec", _short(other))
                    return
        mark = self._ask("ra, dec", "the headers have no position; where on the sky is it, in degrees?")
        self._add("  ra", {"constant": 0.0}, mark)
        self._add("  dec", {"constant": 0.0})

    def _write_detectors(self, science: Sequence[Header], *, without_bias: bool) -> None:
        numbers = [0]
        if self.detector_keyword:
            numbers = sorted({int(each[self.detector_keyword]) for each in self.headers})
        draft = DetectorDraft(self.headers, science[0], self._ask, without_bias=without_bias)
        self.lines.append("detectors:")
        for number in numbers:
            self.lines.extend(draft.write(number, len(numbers)))

    def _find_time(self) -> tuple[dict[str, Any], str]:
        """Return the field of the begin, and a mark if it is a guess."""
        for field in self._time_fields():
            try:
                times = [self._checked_time(field, each) for each in self.headers]
            except HeaderValueError:
                continue
            is_day = all(time.isot.endswith("T00:00:00.000") for time in times)
            return field, "  # guess: midnight, as the headers have the day only" if is_day else ""
        mark = self._ask("date_begin", "the headers have no time; when was it?")
        return {"constant": "2000-01-01T00:00:00"}, mark

    def _time_fields(self) -> Iterator[dict[str, Any]]:
        """Yield fields that may be the begin."""
        days = self._present(DAYS)
        for day in days:
            yield {"keyword": day}
            yield {"keyword": day, "time_format": "iso"}
        for day, time in itertools.product(days, self._present(TIMES)):
            joined = {"keyword": [day, time], "join": "T"}
            yield joined
            for layouts in itertools.product(_DAY_LAYOUTS, _TIME_LAYOUTS):
                yield {**joined, "time_format": "T".join(layouts)}
        for key, form in MOMENTS.items():
            yield {"keyword": key, "time_format": form}
        for day, layout in itertools.product(days, _DAY_LAYOUTS):
            yield {"keyword": day, "time_format": layout}

    def _checked_time(self, field: Mapping[str, Any], header: Header) -> astropy.time.Time:
        reader = HeaderField.model_validate(dict(field))
        if (time := reader.time(header)) is None:
            raise HeaderValueError("no time")
        check_time(header, reader, time)
        return time

    def _find_equinox(self, science: Sequence[Header], begin: HeaderField) -> dict[str, Any] | None:
        """Return the field of the equinox, if a header has another one than 2000."""
        try:
            for each in science:
                check_equinox(each, begin.time(each))
        except HeaderValueError:
            for key in self._present(EQUINOXES, science):
                if self._can_read({"keyword": key, "pattern": r"\d+\.?\d*"}, "number", science):
                    return {"keyword": key}
            for key in self._present(FRAMES, science):
                frames = sorted({str(each[key]).strip() for each in science})
                return {"keyword": key, "values": {f: 1950 if "FK4" in f.upper() else 2000 for f in frames}}
        return None

    def _number(self, keywords: Iterable[str]) -> dict[str, Any] | None:
        """Return the field of a number of seconds, with a decimal comma and a factor if need be."""
        for key in keywords:
            for more in ({}, {"decimal_comma": True}):
                field: dict[str, Any] = {"keyword": key, **more}
                if self._can_read(field, "number"):
                    unit = find_unit(self.first, HeaderField(keyword=(key,)))
                    return field if unit is None else {**field, "factor": unit[0]}
        return None

    def _can_read(self, field: Mapping[str, Any], how: str, headers: Sequence[Header] | None = None) -> bool:
        """Return whether a field has a value of a kind in all headers."""
        reader = HeaderField.model_validate(dict(field))
        try:
            return all(getattr(reader, how)(each) is not None for each in headers or self.headers)
        except HeaderValueError:
            return False


def _short(field: Mapping[str, Any]) -> Any:
    """Return a field as a bare keyword, if it has no options."""
    return field["keyword"] if set(field) == {"keyword"} else dict(field)
