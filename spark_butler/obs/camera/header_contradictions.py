"""Contradictions between a header and what a camera's description takes from it.

Runs in the process of the commands ``obs describe``, ``obs ingest-raws`` and ``obs ingest-calibs``.
"""

from __future__ import annotations

__all__ = (
    "DAYS",
    "EQUINOXES",
    "EXPOSURES",
    "FRAMES",
    "MOMENTS",
    "TIMES",
    "check_equinox",
    "check_exposure_time",
    "check_right_ascension",
    "check_time",
    "find_unit",
    "is_in_hours",
)

import re
from collections.abc import Mapping
from typing import Any

import astropy.time
import astropy.units as u

from .header_fields import HeaderField, HeaderValueError, as_number

type Header = Mapping[str, Any]

DAYS = ("DATE-OBS", "DATE-BEG", "DATE_OBS", "DATEOBS", "OBSDATE", "UTDATE", "UT-DATE")
"""Cards of a day, with or without a time."""

TIMES = (
    *("TIME-OBS", "TIME-BEG", "TIME_OBS", "TIMEOBS", "UTSTART", "UT-START", "UTC-OBS", "UT-OBS", "UTC_OBS"),
    *("UT", "UTC", "UTIME", "UTSHUT", "UTOPEN", "TIME"),
)
"""Cards of a time of the day."""

MOMENTS = {"MJD-OBS": "mjd", "MJD": "mjd", "JD": "jd"}
"""Cards of a day and a time as one number, and its format."""

EXPOSURES = ("EXPTIME", "EXPOSURE", "EXP_TIME", "ITIME", "ESO DET DIT")
EQUINOXES = ("EQUINOX", "OBJEQUIN", "EPOCH")
FRAMES = ("RADESYS", "RADECSYS")
_TIME = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d*)?)?Z?")
_SEXAGESIMAL = re.compile(r"[-+]?(\d+)\s*[:\s]\s*\d+(\s*[:\s]\s*\d+(\.\d*)?)?")
_NEAR_MIDNIGHT = 600.0
"""Seconds by which the clocks of two cards may differ, or the middle of an exposure from its begin."""

_UNITS = (
    (1e-3, "milliseconds", r"ms|msec|msecs|milli-?sec(?:ond)?s?"),
    (1e-6, "microseconds", r"us|usec|usecs|micro-?sec(?:ond)?s?"),
    (60.0, "minutes", r"minutes?"),
    (3600.0, "hours", r"hours?"),
)
_SECONDS = re.compile(r"\b(?:s|sec|secs|seconds?)\b", re.IGNORECASE)
_HOURS = re.compile(r"\b(?:h|hrs?|hours?|hourangle)\b", re.IGNORECASE)
_DEGREES = re.compile(r"\b(?:degs?|degrees?)\b", re.IGNORECASE)


def _comment(field: HeaderField, header: Header) -> str:
    """Return the comments of the cards of a field."""
    comments: Mapping[str, str] = getattr(header, "comments", {})
    return " ".join(comments.get(keyword, "") for keyword in field.sources(header))


def _origin(field: HeaderField, header: Header) -> str:
    return "+".join(field.sources(header))


def check_time(header: Header, field: HeaderField, begin: astropy.time.Time) -> None:
    """Raise if an exposure begins at midnight as its card has only the day, but other cards have the time."""
    used = field.sources(header)
    if not used or not begin.isot.endswith("T00:00:00.000"):
        return
    day = f"{'+'.join(used)} = {field.read(header)!r}"
    tolerance = _NEAR_MIDNIGHT if ":" in day else 0.0
    for keyword in TIMES:
        text = str(header.get(keyword) or "").strip()
        if keyword in used or not _TIME.fullmatch(text):
            continue
        parts = [float(part or 0) for part in text.rstrip("Z").split(":")]
        late = sum(part * 60.0 ** (2 - n) for n, part in enumerate(parts))
        if tolerance < late < 86400.0 - tolerance:
            raise HeaderValueError(
                f"date_begin: {day} is midnight, and {keyword} = {text!r} has the time; join both: "
                f"{{keyword: [{', '.join(used)}, {keyword}], join: T}}, with the time_format of the joined "
                "text if it is not isot"
            )
    for keyword, form in MOMENTS.items():
        value = header.get(keyword)
        if keyword not in used and isinstance(value, int | float) and value > 0:
            moment = astropy.time.Time(value, format=form)
            if tolerance < (moment.mjd % 1.0) * 86400.0 < 86400.0 - tolerance:
                raise HeaderValueError(
                    f"date_begin: {day} is midnight, and {keyword} = {value} has the time; take that: "
                    f"{{keyword: {keyword}, time_format: {form}}}"
                )


def find_unit(header: Header, field: HeaderField) -> tuple[float, str] | None:
    """Return the seconds and the name of the unit of time that a card's comment names, if not seconds."""
    comment = _comment(field, header)
    if _SECONDS.search(comment):
        return None
    found = (
        (factor, name)
        for factor, name, words in _UNITS
        if re.search(rf"(?<![\w-])(?:{words})(?![\w-])", comment, re.IGNORECASE)
    )
    return next(found, None)


def check_exposure_time(header: Header, field: HeaderField, seconds: float, begin: astropy.time.Time) -> None:
    """Raise if an exposure time is not in seconds by its comment, another card, or the end of the exposure.

    A field with a factor is trusted.
    """
    if field.factor is not None or not field.sources(header):
        return
    card = f"exposure_time: {_origin(field, header)} = {field.read(header)}"
    if (unit := find_unit(header, field)) is not None:
        raise HeaderValueError(
            f"{card} is in {unit[1]} by its comment {_comment(field, header)!r}; add factor: {unit[0]:g} to "
            "exposure_time, or factor: 1 if the comment is wrong"
        )
    for keyword in EXPOSURES:
        other = as_number(header.get(keyword))
        if other and abs(seconds / other - 1000.0) < 1.0:
            raise HeaderValueError(
                f"{card} gives {seconds:g} s, and {keyword} = {header[keyword]} is a thousandth of it; add "
                "factor: 0.001 to exposure_time, or factor: 1 if it is in seconds"
            )
    text = str(header.get("DATE-END") or "").strip()
    if not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d", text):
        return
    try:
        lasted = float((astropy.time.Time(text.rstrip("Z"), scale=begin.scale) - begin).to_value(u.s))
    except ValueError:
        return
    # Clocks may differ, and an end before the begin is no end.
    if lasted > 0.0 and seconds > 10.0 * (lasted + 60.0):
        raise HeaderValueError(
            f"{card} gives {seconds:g} s, and DATE-END = {text!r} is {lasted:g} s after the begin; add the "
            "factor to exposure_time: 0.001 for milliseconds, 1 if DATE-END is wrong"
        )


def is_in_hours(header: Header, field: HeaderField) -> bool:
    """Return whether a right ascension is in hours: sexagesimal, or a number with a comment that says so."""
    text, comment = str(field.read(header)).strip().replace(",", "."), _comment(field, header)
    if match := _SEXAGESIMAL.fullmatch(text):
        return int(match[1]) < 24
    # Letters, as in 16h41m41s, tell the unit.
    is_small = (number := as_number(text)) is not None and 0.0 <= number < 24.0
    return is_small and bool(_HOURS.search(comment)) and not _DEGREES.search(comment)


def check_right_ascension(header: Header, field: HeaderField) -> None:
    """Raise if a right ascension in hours is read as degrees; a field with a unit or a factor is trusted."""
    if field.unit is None and field.factor is None and field.sources(header) and is_in_hours(header, field):
        raise HeaderValueError(
            f"ra: {_origin(field, header)} = {field.read(header)!r} looks like hours, and the description "
            "has no unit for it; add unit: hour, or unit: deg if it is in degrees"
        )


def check_equinox(header: Header, begin: astropy.time.Time) -> None:
    """Raise if a header names an equinox that is not 2000, for a position that is taken as ICRS.

    Some headers give the year of the exposure as the epoch.
    """
    frame = next((str(header[key]).strip().upper() for key in FRAMES if header.get(key)), "")
    if frame == "ICRS":
        return
    remedy = "or equinox: {constant: 2000} if the card does not hold for ra and dec"
    for keyword in EQUINOXES:
        year = as_number(str(header.get(keyword)).strip().lstrip("JB"))
        if year is None or not 1800.0 <= year <= 2200.0:
            continue
        is_date = keyword == "EPOCH" and abs(year - begin.decimalyear) < 0.1
        if abs(year - 2000.0) > 0.01 and not is_date:
            raise HeaderValueError(
                f"equinox: {keyword} = {header[keyword]!r}, and the description takes ra and dec as ICRS; "
                f"add equinox: {keyword} to the header's fields, {remedy}"
            )
        return
    if frame.startswith("FK4"):
        keyword = next(key for key in FRAMES if header.get(key))
        raise HeaderValueError(
            f"equinox: {keyword} = {frame!r}, and the description takes ra and dec as ICRS; add "
            f"equinox: {{keyword: {keyword}, values: {{{frame}: B1950}}}} to the header's fields, {remedy}"
        )
