"""Cameras described by YAML: registration, raw and calibration ingest, visits, reference catalogs."""

from __future__ import annotations

__all__ = (
    "AmplifierDescription",
    "CameraDescription",
    "CameraDescriptionError",
    "DetectorDescription",
    "FilterDescription",
    "ObservationType",
    "RawFileError",
    "YamlInstrument",
)

from .camera.description import (
    AmplifierDescription,
    CameraDescription,
    CameraDescriptionError,
    DetectorDescription,
    FilterDescription,
    ObservationType,
)
from .camera.raw_fits import RawFileError
from .instrument import YamlInstrument
