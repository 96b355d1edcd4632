"""Correction of single calibration frames, before they are combined or measured.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("CpIsrConfig", "CpIsrConnections", "CpIsrTask")

from typing import Any, ClassVar

import astropy.units as u
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
from lsst.images import Image
from lsst.pex.config import ChoiceField, Field

from ..errors import UserError
from ..obs.camera.description import CameraDescription
from ..obs.masters import LINEARIZED, NEEDED, UNITS, correct_frame, pixels_of
from .connections import Inputs, Outputs, connect_calibration, connect_camera
from .isr import CalibrationMissingError

_DIMENSIONS = ("instrument", "exposure", "detector")
_TYPES = {"bias": ("bias",), "dark": ("dark",), "flat": ("flat",), "counts": ("bias", "dark", "flat")}


class CpIsrConnections(
    pipe_base.PipelineTaskConnections, dimensions=_DIMENSIONS, defaultTemplates={"name": "cpBias"}
):
    raw = cT.Input("raw", "ImageV2", "Raw calibration frame in ADU.", dimensions=_DIMENSIONS)
    camera = connect_camera()
    bias = connect_calibration("bias", "Master bias, in ADU.")
    dark = connect_calibration("dark", "Master dark, in ADU per second.")
    linearizer = connect_calibration(
        "linearizer", "Polynomials that make the signal proportional to the light."
    )
    output = cT.Output("{name}IsrExp", "ImageV2", "Assembled and corrected frame.", dimensions=_DIMENSIONS)

    def __init__(self, *, config: CpIsrConfig | None = None) -> None:
        super().__init__(config=config)
        assert config is not None, "Always given by the middleware."
        for name in ("bias", "dark"):
            if name not in NEEDED[config.kind]:
                delattr(self, name)
        if not config.do_linearize or config.kind not in LINEARIZED:
            del self.linearizer


class CpIsrConfig(pipe_base.PipelineTaskConfig, pipelineConnections=CpIsrConnections):
    kind = ChoiceField[str](
        doc="Product of the frames.",
        allowed={
            "bias": "ADU above the overscan",
            "dark": "ADU per second, without bias",
            "flat": "relative response, without bias and dark",
            "counts": "frames of all kinds in ADU, without bias and dark; saturated pixels are NaN",
        },
        default="bias",
    )
    do_linearize = Field[bool](
        "Apply the dataset linearizer to darks and flats, where there is one?", default=True
    )


class CpIsrTask(pipe_base.PipelineTask):
    """Assemble a raw calibration frame, and subtract the masters that its kind needs.

    A frame that can't be used has no output, and a warning names it; other frames continue.
    """

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = CpIsrConfig
    _DefaultName: ClassVar[str] = "cpIsr"
    config: CpIsrConfig

    def runQuantum(self, butlerQC: pipe_base.QuantumContext, inputRefs: Inputs, outputRefs: Outputs) -> None:
        data_id: Any = butlerQC.quantum.dataId
        exposure = data_id.records["exposure"]
        kind = self.config.kind
        if exposure.observation_type not in _TYPES[kind]:
            raise pipe_base.NoWorkFound(f"Exposure {exposure.id} is a {exposure.observation_type} frame.")
        origin = f"camera dataset of {data_id['instrument']}"
        camera = CameraDescription.from_dict(butlerQC.get(inputRefs.camera), origin=origin)
        corrections = {}
        for name in NEEDED[kind]:
            ref = getattr(inputRefs, name, None)
            # A bias is left with its noise only, and a dark with its current.
            if ref is not None and name != exposure.observation_type:
                corrections[name] = pixels_of(butlerQC.get(ref))
            elif ref is None and name in camera.calibrations and kind != "counts":
                raise CalibrationMissingError(
                    f"No {name} valid at exposure {exposure.id} of detector {data_id['detector']} is in the "
                    f"input collections, and a {kind} needs it: certify one first."
                )
        linearizer = getattr(inputRefs, "linearizer", None)
        try:
            raw = butlerQC.get(inputRefs.raw)
            pixels = correct_frame(
                kind,  # type: ignore[arg-type]
                raw.array,
                raw.metadata,
                camera,
                detector=data_id["detector"],
                seconds=exposure.dark_time or exposure.exposure_time or 0.0,
                corrections=corrections,
                linearizer=None if linearizer is None else butlerQC.get(linearizer),
            )
        except (UserError, OSError, ValueError) as err:
            reason = f"Exposure {exposure.id} of detector {data_id['detector']} is left out: {err}"
            self.log.warning("%s", reason)
            raise pipe_base.NoWorkFound(reason) from err
        butlerQC.put(Image(pixels, unit=UNITS.get(kind, u.adu)), outputRefs.output)
