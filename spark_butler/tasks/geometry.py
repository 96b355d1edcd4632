"""`lsst.images` descriptions of a detector, made from the camera's YAML."""

from __future__ import annotations

__all__ = ("make_detector",)

import math

import astropy.units as u
import numpy as np
import starlink.Ast
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

from ..obs.description import CameraDescription, DetectorDescription


def make_detector(camera: CameraDescription, detector_id: int, visit: int | None = None) -> Detector:
    """Make the detector object that a `lsst.images.VisitImage` carries.

    Focal-plane coordinates are in pixels; field angles are small-angle approximations without distortion.

    Parameters
    ----------
    camera
        The camera.
    detector_id
        Which of its detectors.
    visit
        Visit that the geometry is for.
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
    lines = _Lines()
    starlink.Ast.Channel(None, lines, "Comment=0").write(frames)
    # CameraFrameSet's constructor is private; its serialized form is not.
    model = CameraFrameSetSerializationModel(instrument=instrument, ast="\n".join(lines.text) + "\n")
    return model.deserialize(None)  # type: ignore[arg-type]


class _Lines:
    """What a `starlink.Ast.Channel` writes its lines to."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def astsink(self, line: str) -> None:
        self.text.append(line)
