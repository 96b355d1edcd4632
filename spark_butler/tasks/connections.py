"""Connections that several tasks have: the camera, and calibrations of a detector.

Runs in every process that makes a pipeline.
"""

from __future__ import annotations

__all__ = (
    "CALIBRATION_DIMENSIONS",
    "Inputs",
    "Outputs",
    "connect_calibration",
    "connect_camera",
    "connect_product",
)

import lsst.pipe.base.connectionTypes as cT
from lsst.daf.butler import StorageClass, StorageClassFactory
from lsst.images import GeneralizedImage
from lsst.pipe.base import InputQuantizedConnection, OutputQuantizedConnection

type Inputs = InputQuantizedConnection
type Outputs = OutputQuantizedConnection
_DETECTOR = ("instrument", "detector")

CALIBRATION_DIMENSIONS = {
    "bias": _DETECTOR,
    "dark": _DETECTOR,
    "flat": ("instrument", "physical_filter", "detector"),
}
"""Dimensions of the calibrations that are images; all others are tables of a detector."""


_MASTER = "CalibrationImage"
"""Storage class of masters as tasks get them: as stored, with a variance, or plain as by earlier releases.

It converts nothing, so that the repository needs not know it.
"""

StorageClassFactory().registerStorageClass(StorageClass(_MASTER, pytype=GeneralizedImage))


def connect_camera() -> cT.PrerequisiteInput:
    """Return the connection to the description of the camera."""
    return cT.PrerequisiteInput(
        doc="Description of the camera, as a mapping.",
        name="camera",
        storageClass="StructuredDataDict",
        dimensions=("instrument",),
        isCalibration=True,
    )


def connect_calibration(name: str, doc: str, *, minimum: int = 0) -> cT.PrerequisiteInput:
    """Return the connection to a calibration dataset: an image of bias, dark or flat, else a table."""
    return cT.PrerequisiteInput(
        doc=doc,
        name=name,
        storageClass=_MASTER if name in CALIBRATION_DIMENSIONS else "ArrowAstropy",
        dimensions=CALIBRATION_DIMENSIONS.get(name, _DETECTOR),
        isCalibration=True,
        minimum=minimum,
    )


def connect_product(name: str, doc: str) -> cT.Output:
    """Return the connection to a calibration dataset that a task makes."""
    dimensions = CALIBRATION_DIMENSIONS.get(name)
    storage_class = "ArrowAstropy" if dimensions is None else "MaskedImageV2"
    return cT.Output(name, storage_class, doc, dimensions=dimensions or _DETECTOR, isCalibration=True)
