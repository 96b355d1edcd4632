"""Gain, read noise and linearity of a detector's amplifiers, and its defects, from calibration frames.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("CpFrame", "LinearitySolveTask", "MeasureDefectsTask", "PhotonTransferCurveSolveTask")

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import astropy.table
import astropy.units as u
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import numpy.typing as npt
from lsst.pex.config import RangeField

from ..errors import UserError
from ..obs.camera.defects import find_defects, sections_of, to_table
from ..obs.camera.description import AmplifierDescription, CameraDescription
from ..obs.masters import combine, normalize
from ..obs.photon_transfer import (
    FlatPair,
    PhotonTransferError,
    fit_linearity,
    fit_photon_transfer,
    measure_pair,
    measure_read_noise,
)
from .connections import Inputs, Outputs, connect_camera, connect_product

_DETECTOR = ("instrument", "detector")


@dataclasses.dataclass(frozen=True)
class CpFrame:
    """A frame in ADU above bias and dark; saturated pixels are NaN."""

    name: str
    kind: str
    physical_filter: str
    seconds: float
    pixels: npt.NDArray[np.float32]


class CpMeasureConnections(
    pipe_base.PipelineTaskConnections, dimensions=_DETECTOR, defaultTemplates={"name": "cp"}
):
    """The frames; subclasses have the product."""

    frames = cT.Input(
        doc="Frames of all kinds in ADU.",
        name="{name}IsrExp",
        storageClass="ImageV2",
        dimensions=("instrument", "exposure", "detector"),
        multiple=True,
    )
    camera = connect_camera()


class PtcConnections(CpMeasureConnections, dimensions=_DETECTOR, defaultTemplates={"name": "cpPtc"}):
    product = connect_product("ptc", "Gain and read noise of each amplifier.")


class LinearizerConnections(
    CpMeasureConnections, dimensions=_DETECTOR, defaultTemplates={"name": "cpLinearizer"}
):
    product = connect_product(
        "linearizer", "Polynomial of each amplifier that makes its signal proportional to the light."
    )


class DefectsConnections(CpMeasureConnections, dimensions=_DETECTOR, defaultTemplates={"name": "cpDefects"}):
    product = connect_product("defects", "Rectangles of hot and dead pixels.")


class PtcConfig(pipe_base.PipelineTaskConfig, pipelineConnections=PtcConnections):
    edge = RangeField("Pixels left out along each edge of an amplifier.", int, 8, min=0)


class LinearizerConfig(pipe_base.PipelineTaskConfig, pipelineConnections=LinearizerConnections):
    edge = RangeField("Pixels left out along each edge of an amplifier.", int, 8, min=0)
    order = RangeField("Highest power of the signal.", int, 3, min=2, max=6)
    max_deviation = RangeField("Largest relative deviation that may be left.", float, 0.02, min=0.0)


class DefectsConfig(pipe_base.PipelineTaskConfig, pipelineConnections=DefectsConnections):
    hot_sigma = RangeField(
        "Excess of dark current, in sigma, from which a pixel is hot.", float, 10.0, min=3.0
    )
    dead_fraction = RangeField(
        dtype=float,
        doc="Pixels whose response differs by so much from their surroundings' are dead or hot.",
        default=0.25,
        min=0.01,
    )
    column_fraction = RangeField(
        "Fraction of defects from which a column is bad as a whole.", float, 0.3, min=0.01
    )


class _MeasureTask(pipe_base.PipelineTask):
    """Base of the three tasks, which reads the frames."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = PtcConfig
    _DefaultName: ClassVar[str] = "cpMeasure"

    def runQuantum(self, butlerQC: pipe_base.QuantumContext, inputRefs: Inputs, outputRefs: Outputs) -> None:
        data_id: Any = butlerQC.quantum.dataId
        origin = f"camera dataset of {data_id['instrument']}"
        camera = CameraDescription.from_dict(butlerQC.get(inputRefs.camera), origin=origin)
        frames = []
        for ref in sorted(inputRefs.frames, key=lambda ref: int(ref.dataId["exposure"])):
            exposure = ref.dataId.records["exposure"]
            frames.append(
                CpFrame(
                    name=f"exposure {exposure.id}",
                    kind=exposure.observation_type,
                    physical_filter=exposure.physical_filter,
                    seconds=exposure.exposure_time or 0.0,
                    pixels=butlerQC.get(ref).array,
                )
            )
        butlerQC.put(self.run(frames, camera, detector=data_id["detector"]), outputRefs)

    def run(self, frames: Sequence[CpFrame], camera: CameraDescription, *, detector: int) -> pipe_base.Struct:
        """Measure; see the tasks."""
        raise NotImplementedError

    def _pairs(self, frames: Sequence[CpFrame], amplifier: AmplifierDescription, edge: int) -> list[FlatPair]:
        """Return the measurements of pairs of flats; unusable pairs are logged and left out."""
        flats = sorted(
            (frame for frame in frames if frame.kind == "flat"),
            key=lambda frame: (frame.physical_filter, frame.seconds, frame.name),
        )
        pairs = []
        for _, group in itertools.groupby(flats, key=lambda f: (f.physical_filter, round(f.seconds, 3))):
            # Zipping an iterator with itself gives pairs, and drops the last of an odd number.
            for first, second in zip(group, group, strict=False):
                try:
                    a, b = (inner(frame.pixels, amplifier, edge) for frame in (first, second))
                    pairs.append(measure_pair(a, b, first.seconds))
                except PhotonTransferError as err:
                    reason = f"{first.name}, {second.name}, amplifier {amplifier.name}: {err}"
                    self.log.warning("Left out %s", reason)
                    self.metadata.add("excluded", reason)
        return pairs


def _amplifiers(
    camera: CameraDescription, detector: int, frames: Sequence[CpFrame]
) -> Sequence[AmplifierDescription]:
    """Return the amplifiers of the frames, which may be binned."""
    described = camera.get_detector(detector)
    columns = {frame.pixels.shape[1] for frame in frames}
    if len(columns) > 1:
        raise UserError(f"frames of detector {detector} are of several binnings: select those of one")
    return described.binned(max(1, described.assembled.nx // columns.pop())).assembled.amplifiers


def inner(pixels: npt.NDArray[Any], amplifier: AmplifierDescription, edge: int) -> npt.NDArray[np.float64]:
    """Return an amplifier's pixels without its edges, which are narrower if the amplifier is small."""
    part = pixels[amplifier.section.slices]
    edge = min(edge, (min(part.shape) - 1) // 4)
    return part[edge : part.shape[0] - edge, edge : part.shape[1] - edge].astype(np.float64)


class PhotonTransferCurveSolveTask(_MeasureTask):
    """Gain and read noise of each amplifier, from pairs of flats and from biases."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = PtcConfig
    _DefaultName: ClassVar[str] = "ptcSolve"
    config: PtcConfig

    def run(self, frames: Sequence[CpFrame], camera: CameraDescription, *, detector: int) -> pipe_base.Struct:
        """Fit the photon transfer of each amplifier.

        Parameters
        ----------
        frames
            At least two flats of one filter and exposure time, and two biases.

        Returns
        -------
        result
            ``product`` (`astropy.table.Table`): a row for each amplifier.

        Raises
        ------
        PhotonTransferError
            Raised if an amplifier's gain can't be determined.
        """
        rows = []
        biases = [frame.pixels for frame in frames if frame.kind == "bias"]
        for amplifier in _amplifiers(camera, detector, frames):
            pairs = self._pairs(frames, amplifier, self.config.edge)
            try:
                floor = measure_read_noise([inner(each, amplifier, self.config.edge) for each in biases])
                found = fit_photon_transfer(pairs, floor)
            except PhotonTransferError as err:
                raise PhotonTransferError(
                    f"amplifier {amplifier.name} of detector {detector}: {err}"
                ) from None
            self.log.info(
                "Amplifier %s: gain %.3f +- %.3f e/ADU, read noise %.2f +- %.2f e, from %d pairs.",
                amplifier.name,
                found.gain,
                found.gain_error,
                found.noise,
                found.noise_error,
                found.pairs,
            )
            rows.append({"amplifier": amplifier.name, **dataclasses.asdict(found)})
        table = astropy.table.Table(rows)
        for name, unit in (("gain", u.electron / u.adu), ("noise", u.electron)):
            table[name].unit = table[f"{name}_error"].unit = unit
        table["turnoff"].unit = u.adu
        return pipe_base.Struct(product=table)


class LinearitySolveTask(_MeasureTask):
    """Polynomial of each amplifier that makes the signal proportional to the exposure time."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = LinearizerConfig
    _DefaultName: ClassVar[str] = "linearitySolve"
    config: LinearizerConfig

    def run(self, frames: Sequence[CpFrame], camera: CameraDescription, *, detector: int) -> pipe_base.Struct:
        """Fit the linearity of each amplifier.

        Parameters
        ----------
        frames
            Pairs of flats of a steady lamp, of ``order + 2`` exposure times at least.

        Returns
        -------
        result
            ``product`` (`astropy.table.Table`): ``amplifier``, and ``c2``, ``c3`` ... that the powers of the
            signal in ADU are multiplied by and added to it.

        Raises
        ------
        PhotonTransferError
            Raised if the signal can't be made proportional to the exposure time.
        """
        rows = []
        for amplifier in _amplifiers(camera, detector, frames):
            pairs = self._pairs(frames, amplifier, self.config.edge)
            where = f"amplifier {amplifier.name} of detector {detector}"
            try:
                coefficients, scatter = fit_linearity(
                    [pair.mean for pair in pairs], [pair.seconds for pair in pairs], order=self.config.order
                )
            except PhotonTransferError as err:
                raise PhotonTransferError(f"{where}: {err}") from None
            if not scatter <= self.config.max_deviation:
                raise PhotonTransferError(
                    f"{where}: deviates by {scatter:.1%} from proportionality after the fit; max_deviation "
                    f"is {self.config.max_deviation:.1%}: is the lamp steady?"
                )
            self.log.info("Amplifier %s: within %.2f %% after the fit.", amplifier.name, 100 * scatter)
            powers = {f"c{power}": value for power, value in enumerate(coefficients, start=2)}
            rows.append({"amplifier": amplifier.name, **powers, "deviation": scatter})
        return pipe_base.Struct(product=astropy.table.Table(rows))


class MeasureDefectsTask(_MeasureTask):
    """Hot pixels by darks, dead ones by flats."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = DefectsConfig
    _DefaultName: ClassVar[str] = "measureDefects"
    config: DefectsConfig

    def run(self, frames: Sequence[CpFrame], camera: CameraDescription, *, detector: int) -> pipe_base.Struct:
        """Find the defects of a detector.

        Parameters
        ----------
        frames
            Darks, flats or both.

        Returns
        -------
        result
            ``product`` (`astropy.table.Table`): rectangles ``x0``, ``y0``, ``width``, ``height``.

        Raises
        ------
        UserError
            Raised if none of the frames can be used.
        """
        rates, responses = [], []
        for frame in frames:
            if frame.kind == "dark" and frame.seconds > 0:
                rates.append(np.nan_to_num(frame.pixels / np.float32(frame.seconds), nan=1e9))
            elif frame.kind == "flat":
                try:
                    responses.append(normalize(frame.pixels))
                except ValueError as err:
                    self.log.warning("%s is left out: %s.", frame.name.capitalize(), err)
                    self.metadata.add("excluded", f"{frame.name}: {err}")
        if not rates and not responses:
            raise UserError(f"detector {detector}: no dark and no flat can be used to find defects")
        mask = find_defects(
            dark=combine(rates) if rates else None,
            flat=combine(responses) if responses else None,
            hot_sigma=self.config.hot_sigma,
            dead_fraction=self.config.dead_fraction,
            column_fraction=self.config.column_fraction,
        )
        table = to_table(sections_of(mask))
        self.metadata["defective"] = int(np.count_nonzero(mask))
        self.log.info("%d defective pixels in %d rectangles.", self.metadata["defective"], len(table))
        return pipe_base.Struct(product=table)
