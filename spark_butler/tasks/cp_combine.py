"""Combination of corrected calibration frames into masters.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("CpBiasCombineTask", "CpCombineTask", "CpDarkCombineTask", "CpFlatCombineTask")

import dataclasses
from typing import Any, ClassVar

import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
from lsst.pex.config import Field, RangeField

from ..errors import UserError
from ..obs.masters import CalibrationKind, make_master
from .connections import CALIBRATION_DIMENSIONS, Inputs, Outputs, connect_product

_DETECTOR = ("instrument", "detector")


class TooFewFramesError(UserError, ValueError):
    """Too few frames of a kind can be used."""


class CpCombineConnections(pipe_base.PipelineTaskConnections, dimensions=(), defaultTemplates={"name": "cp"}):
    """The frames; subclasses have the master."""

    frames = cT.Input(
        doc="Corrected frames.",
        name="{name}IsrExp",
        storageClass="ImageV2",
        dimensions=("instrument", "exposure", "detector"),
        multiple=True,
    )
    master: cT.Output

    def __init__(self, *, config: _CpCombineConfig | None = None) -> None:
        super().__init__(config=config)
        assert config is not None, "Always given by the middleware."
        if not config.do_variance:
            self.master = dataclasses.replace(self.master, storageClass="ImageV2")


class CpBiasCombineConnections(
    CpCombineConnections, dimensions=_DETECTOR, defaultTemplates={"name": "cpBias"}
):
    master = connect_product("bias", "Master bias, in ADU.")


class CpDarkCombineConnections(
    CpCombineConnections, dimensions=_DETECTOR, defaultTemplates={"name": "cpDark"}
):
    master = connect_product("dark", "Master dark, in ADU per second.")


class CpFlatCombineConnections(
    CpCombineConnections, dimensions=CALIBRATION_DIMENSIONS["flat"], defaultTemplates={"name": "cpFlat"}
):
    master = connect_product("flat", "Relative response, with a median of one.")


class _CpCombineConfig(pipe_base.PipelineTaskConfig, pipelineConnections=CpCombineConnections):
    min_frames = RangeField("Fewest frames that make a master.", int, 1, min=1)
    do_variance = Field[bool](
        doc="Store the master's variance? False for repositories in which earlier releases have registered "
        "masters as plain images.",
        default=True,
    )


class CpBiasCombineConfig(_CpCombineConfig, pipelineConnections=CpBiasCombineConnections):
    """Configuration of `CpBiasCombineTask`."""


class CpDarkCombineConfig(_CpCombineConfig, pipelineConnections=CpDarkCombineConnections):
    """Configuration of `CpDarkCombineTask`."""


class CpFlatCombineConfig(_CpCombineConfig, pipelineConnections=CpFlatCombineConnections):
    """Configuration of `CpFlatCombineTask`."""


class CpCombineTask(pipe_base.PipelineTask):
    """Clipped mean of corrected frames; frames that agree with no other are left out and recorded."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = CpBiasCombineConfig
    _DefaultName: ClassVar[str] = "cpCombine"
    kind: ClassVar[CalibrationKind] = "bias"
    config: _CpCombineConfig

    def runQuantum(self, butlerQC: pipe_base.QuantumContext, inputRefs: Inputs, outputRefs: Outputs) -> None:
        refs = sorted(inputRefs.frames, key=lambda ref: int(ref.dataId["exposure"]))
        frames = {f"exposure {ref.dataId['exposure']}": butlerQC.get(ref).array for ref in refs}
        butlerQC.put(self.run(frames), outputRefs)

    def run(self, frames: dict[str, Any]) -> pipe_base.Struct:
        """Combine frames.

        Parameters
        ----------
        frames
            Corrected frames by name, as from `CpIsrTask`.

        Returns
        -------
        result
            ``master`` (`lsst.images.MaskedImage`, or `lsst.images.Image` without a variance).

        Raises
        ------
        TooFewFramesError
            Raised if fewer than ``min_frames`` can be used.
        """
        master, excluded = make_master(self.kind, frames)
        for name, reason in excluded.items():
            self.log.warning("%s is left out: it %s.", name.capitalize(), reason)
        self.metadata["excluded"] = [f"{name}: {reason}" for name, reason in excluded.items()]
        self.metadata["combined"] = len(frames) - len(excluded)
        if self.metadata["combined"] < self.config.min_frames:
            raise TooFewFramesError(
                f"{self.metadata['combined']} of {len(frames)} {self.kind} frames can be used; min_frames is "
                f"{self.config.min_frames}: take more frames, or set it lower"
            )
        self.log.info("Combined %d %s frames.", self.metadata["combined"], self.kind)
        return pipe_base.Struct(master=master if self.config.do_variance else master.image)


class CpBiasCombineTask(CpCombineTask):
    """Master bias of a detector."""

    _DefaultName: ClassVar[str] = "cpBiasCombine"


class CpDarkCombineTask(CpCombineTask):
    """Master dark of a detector."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = CpDarkCombineConfig
    _DefaultName: ClassVar[str] = "cpDarkCombine"
    kind: ClassVar[CalibrationKind] = "dark"


class CpFlatCombineTask(CpCombineTask):
    """Relative response of a detector in a filter."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = CpFlatCombineConfig
    _DefaultName: ClassVar[str] = "cpFlatCombine"
    kind: ClassVar[CalibrationKind] = "flat"
