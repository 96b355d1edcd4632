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

from ._raw_fits import RawFileError
from .description import (
    AmplifierDescription,
    CameraDescription,
    CameraDescriptionError,
    DetectorDescription,
    FilterDescription,
    ObservationType,
)
from .instrument import YamlInstrument
