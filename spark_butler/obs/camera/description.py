"""A camera, described by YAML.

Everything that ingest and instrument signature removal need to know about a camera is in a
`CameraDescription`: its filters, its detectors with their amplifiers, and the header keywords of its raw
files.  The same object is the content of the ``camera`` dataset (as
``CameraDescription.model_dump(mode="json")``), so that tasks get it from the butler::

    camera = CameraDescription.model_validate(butler.get("camera", instrument="SimCam"))
    detector = camera.get_detector(0)
    for amplifier in detector.amplifiers:
        raw.array[amplifier.raw_data_section.slices]
"""

from __future__ import annotations

__all__ = (
    "AmplifierDescription",
    "CameraDescription",
    "CameraDescriptionError",
    "DetectorDescription",
    "FilterDescription",
    "MosaicDescription",
    "ObservationType",
    "OverscanDescription",
)

import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import astropy.wcs
import numpy as np
import pydantic
import yaml
from lsst.images import DetectorFrame, SkyProjection
from lsst.resources import ResourcePath, ResourcePathExpression

from ...errors import UserError
from ...text import describe_expected, suggest
from .defects import read_defects
from .detectors import AmplifierDescription, DetectorDescription, MosaicDescription, OverscanDescription
from .header_fields import HeaderMap
from .planes import PlanesDescription
from .raw_fits import display_name

_MOST_DEFECTS = 5000

type ObservationType = Literal["science", "bias", "dark", "flat", "focus", "test", "unknown"]


class CameraDescriptionError(UserError, ValueError):
    """A camera's description can't be read or contradicts itself."""


class FilterDescription(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A physical filter, its band, and its names in headers."""

    name: str = pydantic.Field(min_length=1, max_length=32)
    band: str = pydantic.Field(min_length=1, max_length=32)
    header_values: tuple[str, ...] = ()
    """Names in headers; the filter's own name where none are given."""


class CameraDescription(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Description of a camera."""

    # The name becomes part of an importable class name of at most 64 characters in the registry.
    name: str = pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")
    description: str = ""
    visit_max: int = pydantic.Field(default=10**12, gt=0)
    exposure_max: int = pydantic.Field(default=10**12, gt=0)
    """Largest exposure identifier plus one; identifiers packed with the detector must fit 63 bits."""
    east: Literal["left", "right"] = "left"
    """Where east lies on an image whose focal-plane y axis points north."""
    day_obs_offset_hours: float = 12.0
    """Hours to subtract from UTC to get the observing day (``day_obs``) of a night."""
    match: dict[str, str] = {}
    """Header keywords, and regular expressions their values must contain for a file to be this camera's."""
    filters: tuple[FilterDescription, ...] = pydantic.Field(min_length=1)
    no_filter: FilterDescription = FilterDescription(name="none", band="none")
    """Filter of bias and dark exposures in the repository, whatever their headers contain."""
    image_types: dict[ObservationType, tuple[str, ...]]
    """For each type of observation, the values of the header's image type (letter case does not matter)."""
    calibrations: tuple[Literal["bias", "dark", "flat"], ...] = ("bias", "dark", "flat")
    """The kinds of calibration that the camera has (and that its frames need)."""
    header: HeaderMap
    planes: PlanesDescription = PlanesDescription()
    """Mask and noise of science frames, in extensions beside the pixels."""
    detectors: tuple[DetectorDescription, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _is_consistent(self) -> Self:
        groups: tuple[tuple[str, list[str]], ...] = (
            ("detector ids", [str(detector.id) for detector in self.detectors]),
            ("detector names", [detector.name for detector in self.detectors]),
            ("filter names", [item.name for item in (*self.filters, self.no_filter)]),
            ("image types", [text.upper() for texts in self.image_types.values() for text in texts]),
            ("filters' header values", [v for f in self.filters for v in f.header_values or (f.name,)]),
        )
        for label, values in groups:
            if repeated := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"{label} are not unique: {', '.join(repeated)}")
        for keyword, pattern in self.match.items():
            try:
                re.compile(pattern)
            except re.error as err:
                raise ValueError(f"match: {keyword}: {pattern!r} is no regular expression: {err}") from None
        return self

    @classmethod
    def from_yaml(cls, uri: ResourcePathExpression) -> Self:
        """Read and check a description.

        Raises
        ------
        CameraDescriptionError
            Raised if the file can't be read, is not YAML, or is not a valid description.
        """
        path = ResourcePath(uri, forceDirectory=False)
        try:
            content = yaml.safe_load(path.read())
        except FileNotFoundError:
            raise CameraDescriptionError(f"{path}: no such camera description") from None
        except (yaml.YAMLError, UnicodeDecodeError) as err:
            raise CameraDescriptionError(f"{path}: not YAML: {' '.join(str(err).split())}") from None
        return cls.from_dict(_with_defects(content, path), origin=str(path))

    @classmethod
    def from_dict(cls, content: Any, *, origin: str = "camera description") -> Self:
        """Check a description that was read elsewhere, such as the content of a ``camera`` dataset.

        Parameters
        ----------
        content
            What `model_dump` returned or YAML gave.
        origin
            Name of the source in errors.

        Raises
        ------
        CameraDescriptionError
            Raised with one clause per mistake: its place, its value, and the expected value.
        """
        if not isinstance(content, dict):
            raise CameraDescriptionError(f"{origin}: expected a mapping, found {type(content).__name__}")
        try:
            return cls.model_validate(content)
        except pydantic.ValidationError as err:
            raise CameraDescriptionError(f"{origin}: {_explain(err)}") from None

    def get_detector(self, detector: int | str) -> DetectorDescription:
        """Return a detector by its ID, or by a text; raise `LookupError` if there is none.

        A text that is both the name of a detector and the ID of another one is a name.
        """
        known_as: dict[int | str, DetectorDescription] = {each.id: each for each in self.detectors}
        known_as.update((str(each.id), each) for each in self.detectors)
        known_as.update((each.name, each) for each in self.detectors)
        if detector in known_as:
            return known_as[detector]
        known = ", ".join(f"{candidate.id} ({candidate.name})" for candidate in self.detectors)
        raise LookupError(f"{self.name} has no detector {detector!r}; it has {known}")

    def with_detector(self, detector: DetectorDescription) -> Self:
        """Return the camera with another description of one of its detectors, such as that of one frame."""
        detectors = (detector if each.id == detector.id else each for each in self.detectors)
        return self.model_copy(update={"detectors": tuple(detectors)})

    def get_filter(self, header_value: str) -> FilterDescription:
        """Return the filter with a name in headers; raise `LookupError` if there is none."""
        for candidate in self.filters:
            if header_value in (candidate.header_values or (candidate.name,)):
                return candidate
        known = ", ".join(v for f in self.filters for v in f.header_values or (f.name,))
        raise LookupError(
            f"{self.name} has no filter {header_value!r} in its headers; it has {known}; add the name to the "
            "header_values of its filter"
        )

    def mismatch(self, header: Mapping[str, Any]) -> str | None:
        """Return the reason why a header is not from this camera; `None` if it is."""
        for keyword, pattern in self.match.items():
            value = header.get(keyword)
            if value is None or re.search(pattern, str(value)) is None:
                return f"{keyword} = {value!r} does not match {pattern!r} of its key match"
        return None

    def initial_wcs(
        self, detector: int | str, ra_deg: float, dec_deg: float, rotation_deg: float = 0.0
    ) -> astropy.wcs.WCS:
        """Return the projection that follows from the pointing alone, for the assembled image.

        Parameters
        ----------
        ra_deg, dec_deg
            ICRS position of the boresight.
        rotation_deg
            Position angle of the focal plane's y axis, from north through east.
        """
        described = self.get_detector(detector)
        theta, phi = np.deg2rad(rotation_deg), np.deg2rad(described.rotation)
        to_focal_plane = np.array([[np.cos(phi), -np.sin(phi)], [np.sin(phi), np.cos(phi)]])
        # Columns are the focal plane's x and y axes in (east, north).
        parity = -1.0 if self.east == "left" else 1.0
        to_sky = np.array([[parity * np.cos(theta), np.sin(theta)], [-parity * np.sin(theta), np.cos(theta)]])
        center = np.array([0.5 * (described.nx - 1), 0.5 * (described.ny - 1)])
        wcs = astropy.wcs.WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.radesys = "ICRS"
        wcs.wcs.crval = [ra_deg, dec_deg]
        wcs.wcs.crpix = center - to_focal_plane.T @ np.asarray(described.offset) + 1.0
        wcs.wcs.cd = (described.pixel_scale / 3600.0) * (to_sky @ to_focal_plane)
        wcs.wcs.set()
        wcs.array_shape = (described.ny, described.nx)
        return wcs

    def initial_sky_projection(
        self,
        detector: int | str,
        ra_deg: float,
        dec_deg: float,
        rotation_deg: float = 0.0,
        *,
        visit: int | None = None,
    ) -> SkyProjection[DetectorFrame]:
        """Return `initial_wcs` as the projection that `lsst.images` objects carry."""
        described = self.get_detector(detector)
        return SkyProjection.from_fits_wcs(
            self.initial_wcs(detector, ra_deg, dec_deg, rotation_deg),
            DetectorFrame(instrument=self.name, detector=described.id, visit=visit, bbox=described.bbox),
        )


def _with_defects(content: Any, origin: ResourcePath) -> Any:
    """Return a description in which the files that it names as defects are replaced by what they hold."""
    if not isinstance(content, dict) or not isinstance(content.get("detectors"), list):
        return content
    detectors = []
    for each in content["detectors"]:
        named = each.get("defects") if isinstance(each, dict) else None
        if isinstance(named, str) and not named.lstrip().startswith("["):
            file = ResourcePath(named, root=origin.dirname(), forceAbsolute=True)
            sections = read_defects(file)
            if len(sections) > _MOST_DEFECTS:
                raise CameraDescriptionError(
                    f"{display_name(file)}: {len(sections)} rectangles of defects; a description holds "
                    f"{_MOST_DEFECTS}: put them into the dataset defects instead (cp_defects.yaml)"
                )
            each = {**each, "defects": [str(section) for section in sections]}
        detectors.append(each)
    return {**content, "detectors": detectors}


def _explain(error: pydantic.ValidationError) -> str:
    """Return a clause for each mistake: its place, its value, the expected value, and a similar key."""
    clauses: dict[str, str] = {}
    for item in error.errors(include_url=False):
        # Types of a union are no part of the place.
        location = [part for part in item["loc"] if part not in ("bool", "int", "float", "str")]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
        where = where.removeprefix(".") or "the camera"
        value = item["input"]
        shown = f" = {value!r}" if isinstance(value, str | int | float) else ""
        if item["type"] == "extra_forbidden":
            clause = f"{where}{shown}: there is no such key; {suggest(str(location[-1]), _keys_at(location))}"
        elif item["type"] == "missing":
            clause = f"{where} is missing"
        elif item["type"] == "string_pattern_mismatch":
            clause = f"{where}{shown}: expected a letter, then letters, digits, _ or -, at most 32 in all"
        elif item["type"] == "dict_type":
            clause = f"{where}{shown}: expected a mapping, such as {{KEY: TEXT}}"
        else:
            clause = f"{where}{shown}: {describe_expected(item)}"
        clauses.setdefault(where, clause.rstrip("."))
    return "; ".join(clauses.values())


def _keys_at(location: Sequence[str | int]) -> Sequence[str]:
    """Return the keys that a mapping of the description can have, by the place of one of them."""
    model: Any = CameraDescription
    for part in location[:-1]:
        if isinstance(part, str) and part in getattr(model, "model_fields", ()):
            model = _find_model(model.model_fields[part].annotation)
    return list(getattr(model, "model_fields", ()))


def _find_model(annotation: Any) -> Any:
    """Return the model in the annotation of a field."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    return next(filter(None, map(_find_model, typing.get_args(annotation))), None)
