"""Exposure, detector and filter of a raw file, from its header and the camera's description."""

from __future__ import annotations

__all__ = ("RawFile", "describe_master", "describe_raw", "read_raw_file")

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import astropy.time
import astropy.units as u
from astropy.coordinates import FK4, FK5, SkyCoord
from lsst.daf.butler import Timespan
from lsst.resources import ResourcePath

from .description import CameraDescription, DetectorDescription, FilterDescription, ObservationType
from .frame_detector import bin_detector, check_size, describe_frame
from .header_contradictions import check_equinox, check_exposure_time, check_right_ascension, check_time
from .header_fields import HeaderField, HeaderMap, HeaderValueError
from .raw_fits import display_name, read_raw_header

_SHORTEST = 1e-3
"""Shortest timespan of an exposure in seconds; an empty timespan overlaps no validity range."""

_FIRST = astropy.time.Time("1970-01-03T00:00:00", scale="tai")
"""Earliest time of an exposure: a registry has no times before 1970, and a night may begin a day earlier."""

_LONGEST = 1e6


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A raw file and the records it implies."""

    uri: ResourcePath
    detector: int
    day_obs: dict[str, Any]
    group: dict[str, Any]
    exposure: dict[str, Any]

    @property
    def instrument(self) -> str:
        """Name of the instrument."""
        return str(self.exposure["instrument"])

    @property
    def observation_type(self) -> str:
        """Type of the observation, one of `ObservationType`."""
        return str(self.exposure["observation_type"])

    @property
    def data_id(self) -> dict[str, Any]:
        """Data ID of the ``raw`` dataset."""
        exposure = self.exposure
        return {"instrument": exposure["instrument"], "exposure": exposure["id"], "detector": self.detector}


def read_raw_file(uri: ResourcePath, cameras: Sequence[CameraDescription]) -> RawFile:
    """Read the header of a file, and return its exposure and detector, by the first camera that matches."""
    header = read_raw_header(uri)
    try:
        camera = _find_camera(header, cameras)
        raw = describe_raw(uri, header, camera)
        frame = describe_frame(camera, raw.detector, header)
        check_size(header, frame)
        if raw.observation_type == "science":
            camera.planes.check(header)
        return raw
    except HeaderValueError as err:
        raise HeaderValueError(f"{display_name(uri)}: {err}") from None


def describe_master(
    uri: ResourcePath, header: Mapping[str, Any], cameras: Sequence[CameraDescription], *, with_filter: bool
) -> tuple[CameraDescription, DetectorDescription, str | None]:
    """Return the camera, the detector and, if requested, the filter of a master calibration."""
    try:
        camera = _find_camera(header, cameras)
        detector = bin_detector(camera, camera.get_detector(_detector(header, camera)), header)
        return camera, detector, _filter(header, camera, "flat").name if with_filter else None
    except HeaderValueError as err:
        raise HeaderValueError(f"{display_name(uri)}: {err}") from None


def _find_camera(header: Mapping[str, Any], cameras: Sequence[CameraDescription]) -> CameraDescription:
    mismatches = []
    for camera in cameras:
        if (mismatch := camera.mismatch(header)) is None:
            return camera
        mismatches.append(f"{camera.name}: {mismatch}")
    raise HeaderValueError(f"not from a registered instrument ({'; '.join(mismatches)})")


def describe_raw(uri: ResourcePath, header: Mapping[str, Any], camera: CameraDescription) -> RawFile:
    """Translate a header; raise `HeaderValueError` if it lacks what the camera's description needs."""
    fields = camera.header
    observation_type = _observation_type(header, camera)
    begin = _needed(fields.date_begin.time(header), "date_begin", fields.date_begin)
    duration = _needed(fields.exposure_time.number(header), "exposure_time", fields.exposure_time)
    exposure_id = _needed(fields.exposure_id.integer(header), "exposure_id", fields.exposure_id)
    if not 0 <= exposure_id < camera.exposure_max:
        raise HeaderValueError(f"exposure_id = {exposure_id} is not within 0 and {camera.exposure_max}")
    if begin < _FIRST:
        raise HeaderValueError(
            f"date_begin = {begin.utc.isot} is before 1970-01-03: a Butler repository can't hold it"
        )
    if not 0 <= duration < _LONGEST:
        raise HeaderValueError(f"exposure_time = {duration} is not within 0 and {_LONGEST:.0f} seconds")
    check_time(header, fields.date_begin, begin)
    check_exposure_time(header, fields.exposure_time, duration, begin)
    obs_id = _text(fields.obs_id, header) or str(exposure_id)
    group = _text(fields.group, header) or obs_id
    day_obs, night = _night(begin, camera.day_obs_offset_hours)
    seq_num = None if fields.seq_num is None else fields.seq_num.integer(header)
    on_sky = observation_type == "science"
    ra, dec = _pointing(header, fields, begin) if on_sky else (None, None)
    exposure = {
        "instrument": camera.name,
        "id": exposure_id,
        "day_obs": day_obs,
        "group": group,
        "physical_filter": _filter(header, camera, observation_type).name,
        "obs_id": obs_id,
        "exposure_time": duration,
        "dark_time": duration if fields.dark_time is None else fields.dark_time.number(header),
        "observation_type": observation_type,
        "observation_reason": _text(fields.reason, header),
        "seq_num": seq_num,
        "seq_start": seq_num,
        "seq_end": seq_num,
        "target_name": _text(fields.target, header),
        "science_program": _text(fields.program, header),
        "tracking_ra": ra,
        "tracking_dec": dec,
        "sky_angle": fields.rotation.angle(header) if on_sky else None,
        "azimuth": None if fields.azimuth is None else fields.azimuth.angle(header),
        "zenith_angle": None if fields.zenith_angle is None else fields.zenith_angle.angle(header),
        "can_see_sky": on_sky,
        "timespan": Timespan(begin.tai, (begin + max(duration, _SHORTEST) * u.s).tai),
    }
    return RawFile(
        uri=uri,
        detector=_detector(header, camera),
        day_obs={"instrument": camera.name, "id": day_obs, "timespan": night},
        group={"instrument": camera.name, "name": group},
        exposure=exposure,
    )


def _needed[T](value: T | None, label: str, field: HeaderField) -> T:
    if value is None:
        raise HeaderValueError(f"{label}: {' or '.join(field.keyword)} is missing or blank in the header")
    return value


def _pointing(header: Mapping[str, Any], fields: HeaderMap, begin: astropy.time.Time) -> tuple[float, float]:
    """Return the ICRS position of the boresight in degrees."""
    check_right_ascension(header, fields.ra)
    ra = _within(header, "ra", fields.ra, -180.0, 360.0) % 360.0
    dec = _within(header, "dec", fields.dec, -90.0, 90.0)
    year = None if fields.equinox is None else (fields.equinox.text(header) or "").strip().lstrip("JB")
    if not year:
        if fields.ra.constant is None:
            check_equinox(header, begin)
        return ra, dec
    try:
        equinox = float(year)
    except ValueError:
        raise HeaderValueError(f"equinox = {year!r} is not a year, such as 2000.0 or B1950") from None
    if not 1800.0 <= equinox <= 2200.0:
        raise HeaderValueError(f"equinox = {equinox:g} is not a year within 1800 and 2200")
    frame = FK4(equinox=f"B{equinox}") if equinox < 1984.0 else FK5(equinox=f"J{equinox}")
    icrs = SkyCoord(ra * u.deg, dec * u.deg, frame=frame).icrs
    return float(icrs.ra.deg), float(icrs.dec.deg)


def _within(header: Mapping[str, Any], label: str, field: HeaderField, low: float, high: float) -> float:
    angle = _needed(field.angle(header), label, field)
    if not low <= angle <= high:
        raise HeaderValueError(
            f"{label}: {' or '.join(field.keyword) or 'constant'} gives {angle:.6g} degrees, which is not "
            f"within {low:g} and {high:g}; is the unit {field.unit or 'deg'!r} right?"
        )
    return angle


def _text(field: HeaderField | None, header: Mapping[str, Any]) -> str | None:
    return None if field is None else field.text(header)


def _observation_type(header: Mapping[str, Any], camera: CameraDescription) -> ObservationType:
    field = camera.header.image_type
    text = _needed(field.text(header), "image_type", field)
    for observation_type, values in camera.image_types.items():
        if text.upper() in (value.upper() for value in values):
            return observation_type
    known = ", ".join(value for values in camera.image_types.values() for value in values)
    raise HeaderValueError(
        f"image type {text!r} is not one of {camera.name}'s: {known}; add it to image_types "
        "(under unknown if it has no use)"
    )


def _filter(
    header: Mapping[str, Any], camera: CameraDescription, observation_type: ObservationType
) -> FilterDescription:
    if observation_type in ("bias", "dark"):
        return camera.no_filter
    field = camera.header.physical_filter
    try:
        return camera.get_filter(_needed(field.text(header), "physical_filter", field))
    except LookupError as err:
        raise HeaderValueError(str(err)) from None


def _detector(header: Mapping[str, Any], camera: CameraDescription) -> int:
    field = camera.header.detector
    try:
        return camera.get_detector(_needed(field.text(header), "detector", field)).id
    except LookupError as err:
        raise HeaderValueError(str(err)) from None


def _night(begin: astropy.time.Time, offset_hours: float) -> tuple[int, Timespan]:
    """Return the ``day_obs`` of an exposure, as YYYYMMDD, and the begin and end of that day."""
    date = (begin.utc - offset_hours * u.hour).strftime("%Y-%m-%d")
    start = astropy.time.Time(date, scale="utc") + offset_hours * u.hour
    return int(date.replace("-", "")), Timespan(start.tai, (start + 1 * u.day).tai)
