"""Fields of a camera's description that name the header keywords of values."""

from __future__ import annotations

__all__ = ("HeaderField", "HeaderMap", "HeaderValueError", "as_number")

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import astropy.coordinates
import astropy.time
import astropy.units as u
import pydantic

from ...errors import UserError
from ...text import suggest


class HeaderValueError(UserError, ValueError):
    """A FITS header lacks a value that the camera's description needs, or has one it can't read."""


def as_number(value: Any) -> float | None:
    """Return a header value as a finite number, also with a decimal comma."""
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class HeaderField(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Source of one value, and the way to read it.

    A field is either a ``constant`` or the first of the ``keyword`` cards that is present and not blank, else
    the ``default``.  The card's value is then treated in the order of the attributes below.
    """

    keyword: tuple[str, ...] = ()
    constant: bool | int | float | str | None = None
    default: bool | int | float | str | None = None
    pattern: str | None = None
    """Regular expression to search the value's text for; its first group (or the whole match) is kept."""
    values: dict[str, bool | int | float | str] | None = None
    """Translation of the card's text into the value meant; a text that is not listed is an error."""
    join: str | None = None
    """Text that joins the values of all keywords into one: a day and a time in two cards."""
    factor: float | None = None
    """Factor for a number or an angle: 0.001 for milliseconds, -1 for the opposite sign.

    Without it, it is 1, and a header that contradicts that is refused.
    """
    decimal_comma: bool = False
    """Whether numbers are written as ``'30,00000'``."""
    unit: Literal["deg", "hour", "rad"] | None = None
    """Unit of an angle; sexagesimal text is understood for ``deg`` and ``hour``.

    Without it, it is ``deg``, and a header that contradicts that is refused.
    """
    time_format: str = "isot"
    """Format of a time: one of astropy's (``isot``, ``mjd``, ``jd``, ``unix``, ...), or one
    of ``strptime`` (``%d/%m/%y``)."""
    time_scale: Literal["utc", "tai", "tt"] = "utc"
    date_id: str | None = None
    """`datetime.datetime.strftime` format that turns a time into an integer identifier."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_keyword(cls, value: Any) -> Any:
        # The commonest fields are a bare keyword and a keyword with options.
        if isinstance(value, str):
            return {"keyword": (value,)}
        if isinstance(value, dict) and isinstance(value.get("keyword"), str):
            return {**value, "keyword": (value["keyword"],)}
        return value

    @pydantic.model_validator(mode="after")
    def _has_source(self) -> Self:
        if bool(self.keyword) == (self.constant is not None):
            raise ValueError("give either a keyword or a constant")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as err:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {err}") from None
        return self

    def sources(self, header: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keywords of the cards that the value comes from; none for a constant or a default."""
        # A card of 0 is there: 0 minutes of arc.
        present = [key for key in self.keyword if header.get(key) is not None and str(header[key]).strip()]
        if self.join is not None:
            return self.keyword if len(present) == len(self.keyword) else ()
        return tuple(present[:1])

    def read(self, header: Mapping[str, Any]) -> Any:
        """Return the untyped value; `None` if the header has none and there is no default."""
        if self.constant is not None:
            return self.constant
        if not (found := self.sources(header)):
            return self.default
        if self.join is None:
            return self._translate(found[0], header[found[0]])
        return self._translate("+".join(found), self.join.join(str(header[key]).strip() for key in found))

    def _translate(self, keyword: str, value: Any) -> Any:
        text = str(value).strip()
        if self.pattern is not None:
            if (match := re.search(self.pattern, text)) is None:
                raise HeaderValueError(
                    f"{keyword} = {text!r} does not match {self.pattern!r} of the key pattern"
                )
            value = text = match.group(1) if match.re.groups else match.group()
        if self.values is not None:
            if text not in self.values:
                known = suggest(text, self.values)
                raise HeaderValueError(f"{keyword} = {text!r} is not listed in the key values; {known}")
            return self.values[text]
        return value.strip() if isinstance(value, str) else value

    def _fail(self, value: Any, expected: str) -> HeaderValueError:
        origin = "/".join(self.keyword) or "constant"
        if value is None:
            return HeaderValueError(f"{origin} is missing or blank; expected {expected}")
        remedy = ""
        if isinstance(value, str) and not self.decimal_comma and re.fullmatch(r"[-+ :\d]*\d,\d+", value):
            remedy = "; decimal_comma: true reads decimal commas"
        elif "time" in expected:
            remedy = "; time_format, pattern or join (of a day and a time in two cards) read other forms"
        elif "angle" in expected:
            remedy = "; unit or pattern read other forms"
        return HeaderValueError(f"{origin} = {value!r} is not {expected}{remedy}")

    def _decimal(self, value: Any) -> Any:
        """Return text of a number with a decimal point."""
        return value.replace(",", ".") if self.decimal_comma and isinstance(value, str) else value

    def text(self, header: Mapping[str, Any]) -> str | None:
        """Return the value as text, or `None`."""
        value = self.read(header)
        return None if value is None else str(value)

    def number(self, header: Mapping[str, Any]) -> float | None:
        """Return the value as a number, or `None`."""
        value = self.read(header)
        if value is None:
            return None
        try:
            number = float(self._decimal(value))
        except (ValueError, TypeError):
            raise self._fail(value, "a number") from None
        if not math.isfinite(number):
            raise self._fail(value, "a finite number")
        return number if self.factor is None else number * self.factor

    def integer(self, header: Mapping[str, Any]) -> int | None:
        """Return the value as an integer, or `None`."""
        value = self.read(header)
        if value is None:
            return None
        if self.date_id is not None:
            return int(self._parse_time(value).utc.to_datetime(timezone=datetime.UTC).strftime(self.date_id))
        try:
            return int(value)
        except (ValueError, OverflowError, TypeError):
            raise self._fail(value, "an integer") from None

    def angle(self, header: Mapping[str, Any]) -> float | None:
        """Return the value as an angle in degrees, or `None`."""
        value = self.read(header)
        if value is None:
            return None
        name = self.unit or "deg"
        unit = {"deg": u.deg, "hour": u.hourangle, "rad": u.rad}[name]
        try:
            angle = float(astropy.coordinates.Angle(self._decimal(value), unit=unit).deg)
        except (ValueError, TypeError, u.UnitsError):
            raise self._fail(value, f"an angle in {name}") from None
        if not math.isfinite(angle):
            raise self._fail(value, f"a finite angle in {name}")
        return angle if self.factor is None else angle * self.factor

    def time(self, header: Mapping[str, Any]) -> astropy.time.Time | None:
        """Return the value as a time, or `None`."""
        value = self.read(header)
        return None if value is None else self._parse_time(value)

    def _parse_time(self, value: Any) -> astropy.time.Time:
        try:
            text = self._decimal(value)
            if "%" in self.time_format:
                moment = datetime.datetime.strptime(str(text), self.time_format)
                # By strptime, years from 00 to 68 are those after 2000: no exposure is of the future.
                if "%y" in self.time_format and moment > datetime.datetime.now():
                    moment = moment.replace(year=moment.year - 100)
                time = astropy.time.Time(moment, format="datetime", scale=self.time_scale)
                time.format = "isot"
            else:
                is_number = self.time_format in ("mjd", "jd", "unix")
                text = float(text) if is_number and isinstance(text, str) else text
                time = astropy.time.Time(text, format=self.time_format, scale=self.time_scale)
            if not math.isfinite(time.jd):
                raise ValueError("not finite")
            return time
        except (ValueError, TypeError):
            raise self._fail(value, f"a time in {self.time_format}") from None


class HeaderMap(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The header fields that ingest needs, each from a keyword or a constant."""

    exposure_id: HeaderField
    """Integer, unique among the instrument's exposures."""
    detector: HeaderField
    """Identifier (an integer) or name of the detector that the file is from."""
    image_type: HeaderField
    """Kind of the exposure; its values are listed in the description's ``image_types``."""
    date_begin: HeaderField
    """Start of the exposure."""
    exposure_time: HeaderField
    """Seconds."""
    physical_filter: HeaderField
    ra: HeaderField
    """Right ascension of the boresight."""
    dec: HeaderField
    """Declination of the boresight."""
    equinox: HeaderField | None = None
    """Equinox of ``ra`` and ``dec``, a year: before 1984 of FK4, else of FK5. Without it they are ICRS."""
    rotation: HeaderField = HeaderField(constant=0.0)
    """Position angle of the focal plane's y axis, from north through east."""
    binning: HeaderField | None = None
    """Pixels of the description's sections along each side of a binned one: ``2``, ``'2 2'``, ``2x2``."""
    dark_time: HeaderField | None = None
    """Seconds; the exposure time where it is not given."""
    obs_id: HeaderField | None = None
    """Name of the exposure; the exposure's identifier where it is not given."""
    group: HeaderField | None = None
    """Name of a group of exposures; the observation's name where it is not given."""
    seq_num: HeaderField | None = None
    target: HeaderField | None = None
    reason: HeaderField | None = None
    program: HeaderField | None = None
    azimuth: HeaderField | None = None
    zenith_angle: HeaderField | None = None
