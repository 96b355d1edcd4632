"""Parts of an image beside its pixels: mask planes, detector, observation, identifiers of its sources.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "FRAME_DETECTOR",
    "camera_of_image",
    "describe_observation",
    "make_detector",
    "make_mask_schema",
    "make_source_ids",
    "plane_union",
)

import math
import types
import warnings
from collections.abc import Mapping
from typing import Any

import astropy.units as u
import numpy as np
import numpy.typing as npt
import starlink.Ast
from astro_metadata_translator import ObservationInfo, makeObservationInfo
from astropy.coordinates import SkyCoord
from lsst.daf.butler import DataCoordinate
from lsst.images import Mask, MaskSchema, get_legacy_visit_image_mask_planes
from lsst.images.cameras import (
    Amplifier,
    AmplifierCalibrations,
    CameraFrameSet,
    CameraFrameSetSerializationModel,
    Detector,
    DetectorAttributes,
    DetectorType,
    Orientation,
    ReadoutCorner,
)
from lsst.pipe.base import ObservationDimensionPacker

from ..obs.camera.description import CameraDescription, DetectorDescription

_PLANES = ("BAD", "SAT", "CR", "EDGE", "DETECTED", "NO_DATA")


FRAME_DETECTOR = "frameDetector"
"""Metadata of an image of which the detector differs from the camera's description: binned, for example."""


def camera_of_image(camera: CameraDescription, metadata: Mapping[str, Any]) -> CameraDescription:
    """Return the camera with the detector in the metadata of an image."""
    if (content := metadata.get(FRAME_DETECTOR)) is None:
        return camera
    return camera.with_detector(DetectorDescription.model_validate_json(content))


def make_mask_schema() -> MaskSchema:
    """Return the planes, under Rubin's names and with Rubin's descriptions."""
    planes = get_legacy_visit_image_mask_planes()
    return MaskSchema([planes[name] for name in _PLANES])


def plane_union(mask: Mask, *planes: str) -> npt.NDArray[np.bool_]:
    """Return where any of the planes is set."""
    return np.asarray((mask.array & mask.schema.bitmask(*planes)).any(axis=-1))


_BITS = 63


def make_source_ids(data_id: DataCoordinate, count: int) -> npt.NDArray[np.int64]:
    """Return identifiers: visit and detector in the upper bits, a counter from 1 in the lower ones.

    Raises
    ------
    OverflowError
        Raised if the instrument's largest visit and detector leave too few bits for so many sources.
    """
    packer = ObservationDimensionPacker(data_id, is_exposure=False)
    free = _BITS - packer.maxBits
    if count >= 1 << max(free, 0):
        raise OverflowError(
            f"{count} sources do not fit the {free} bits that visit_max and detector_max of "
            f"{data_id['instrument']} leave; give the camera's description a smaller visit_max"
        )
    packed = packer.pack(data_id)
    assert isinstance(packed, int), "A tuple is returned only on request."
    return np.arange(1, count + 1, dtype=np.int64) + (packed << free)


def describe_observation(
    camera: CameraDescription, detector: int, exposure: Any, visit: int
) -> ObservationInfo:
    """Return the observation info of one detector's image."""
    same = "physical_filter observation_type observation_reason science_program can_see_sky".split()
    values: dict[str, Any] = {
        **{name: getattr(exposure, name) for name in same},
        "instrument": camera.name,
        "exposure_id": exposure.id,
        "visit_id": visit,
        "observation_id": exposure.obs_id,
        "detector_num": detector,
        "detector_name": camera.get_detector(detector).name,
        "object": exposure.target_name,
        "observing_day": exposure.day_obs,
        "observation_counter": exposure.seq_num,
        "has_simulated_content": exposure.has_simulated,
    }
    if exposure.exposure_time is not None:
        values["exposure_time"] = exposure.exposure_time * u.s
    if exposure.dark_time is not None:
        values["dark_time"] = exposure.dark_time * u.s
    if exposure.timespan is not None:
        values["datetime_begin"], values["datetime_end"] = exposure.timespan.begin, exposure.timespan.end
    if exposure.tracking_ra is not None and exposure.tracking_dec is not None:
        values["tracking_radec"] = SkyCoord(
            exposure.tracking_ra * u.deg, exposure.tracking_dec * u.deg, frame="icrs"
        )
    with warnings.catch_warnings():
        # Outdated leap-second tables have no effect here.
        warnings.simplefilter("ignore")
        return makeObservationInfo(**{key: value for key, value in values.items() if value is not None})


def make_detector(camera: CameraDescription, detector_id: int, visit: int | None = None) -> Detector:
    """Make the detector object that a `lsst.images.VisitImage` carries.

    Focal-plane coordinates are in pixels; field angles are small-angle approximations without distortion.
    """
    described = camera.get_detector(detector_id)
    attributes = DetectorAttributes(
        name=described.name,
        id=described.id,
        type=DetectorType(described.purpose) if described.purpose in DetectorType else DetectorType.SCIENCE,
        serial=described.name,
        bbox=described.bbox,
        orientation=Orientation(
            focal_plane_x=described.offset[0],
            focal_plane_y=described.offset[1],
            focal_plane_z=0.0,
            pixel_reference_x=0.5 * (described.nx - 1),
            pixel_reference_y=0.5 * (described.ny - 1),
            yaw=math.radians(described.rotation) * u.rad,
        ),
        pixel_size=1.0,
        physical_type="CCD",
    )
    amplifiers = [
        Amplifier(
            name=amplifier.name,
            bbox=amplifier.section.bbox,
            readout_corner=ReadoutCorner.LL,
            nominal_calibrations=AmplifierCalibrations(
                gain=amplifier.gain,
                read_noise=amplifier.read_noise,
                saturation=amplifier.saturation,
                suspect_level=math.nan,
                linearity_coefficients=np.zeros(0),
                linearity_type="None",
            ),
        )
        for amplifier in described.amplifiers
    ]
    return Detector(attributes, amplifiers, _make_frames(camera.name, described), visit=visit)


def _make_frames(instrument: str, detector: DetectorDescription) -> CameraFrameSet:
    focal_plane = starlink.Ast.Frame(2, "Ident=FOCAL_PLANE,Domain=FOCAL_PLANE,Unit(1)=pixel,Unit(2)=pixel")
    frames = starlink.Ast.FrameSet(focal_plane)
    radians = math.radians(detector.pixel_scale / 3600.0)
    frames.addframe(
        1,
        starlink.Ast.ZoomMap(2, radians),
        starlink.Ast.Frame(2, "Ident=FIELD_ANGLE,Domain=FIELD_ANGLE,Unit(1)=rad,Unit(2)=rad"),
    )
    phi = math.radians(detector.rotation)
    rotation = np.array([[math.cos(phi), math.sin(phi)], [-math.sin(phi), math.cos(phi)]])
    to_center = starlink.Ast.ShiftMap([-detector.offset[0], -detector.offset[1]])
    to_corner = starlink.Ast.ShiftMap([0.5 * (detector.nx - 1), 0.5 * (detector.ny - 1)])
    turned = starlink.Ast.CmpMap(to_center, starlink.Ast.MatrixMap(rotation), True)
    # Bounds have the half-open form in which CameraFrameSet reads them back.
    pixels = starlink.Ast.Frame(
        2,
        f"Ident=DETECTOR_{detector.id:03d},Domain=PIXELS,Unit(1)=pixel,Unit(2)=pixel,"
        f"Bottom(1)=0,Top(1)={detector.nx},Bottom(2)=0,Top(2)={detector.ny}",
    )
    frames.addframe(1, starlink.Ast.CmpMap(turned, to_corner, True), pixels)
    lines: list[str] = []
    sink = types.SimpleNamespace(astsink=lines.append)
    starlink.Ast.Channel(None, sink, "Comment=0").write(frames)
    # CameraFrameSet's constructor is private; its serialized form is not.
    model = CameraFrameSetSerializationModel(instrument=instrument, ast="\n".join(lines) + "\n")
    return model.deserialize(None)  # type: ignore[arg-type]
