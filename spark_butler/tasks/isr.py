"""Instrument signature removal: from raw pixels to electrons with a mask and a variance."""

from __future__ import annotations

__all__ = ("CalibrationMissingError", "IsrConfig", "IsrConnections", "IsrTask")

from typing import Any, ClassVar

import astropy.units as u
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import numpy.typing as npt
import scipy.ndimage
from lsst.images import DetectorFrame, Image, Mask, MaskedImage, SkyProjection
from lsst.pex.config import ChoiceField, Field, RangeField

from ..errors import UserError
from ..obs.description import CameraDescription, DetectorDescription
from .amplifiers import AssembledImage, RawShapeError, assemble
from .cosmic_rays import find_cosmic_rays
from .masks import make_mask_schema, plane_union

type Image32 = npt.NDArray[np.float32]

_DIMENSIONS = ("instrument", "exposure", "detector")
_CALIBRATION_DIMENSIONS = {
    "bias": ("instrument", "detector"),
    "dark": ("instrument", "detector"),
    "flat": ("instrument", "physical_filter", "detector"),
}


class CalibrationMissingError(UserError, LookupError):
    """A calibration frame that the camera is said to have is not in the input collections."""


class IsrConnections(pipe_base.PipelineTaskConnections, dimensions=_DIMENSIONS):
    raw = cT.Input(
        doc="Raw pixels in ADU, overscan included.",
        name="raw",
        storageClass="ImageV2",
        dimensions=_DIMENSIONS,
    )
    camera = cT.PrerequisiteInput(
        doc="Description of the camera, as a mapping.",
        name="camera",
        storageClass="StructuredDataDict",
        dimensions=("instrument",),
        isCalibration=True,
    )
    bias = cT.PrerequisiteInput(
        doc="Assembled bias level left after overscan subtraction, in ADU.",
        name="bias",
        storageClass="ImageV2",
        dimensions=_CALIBRATION_DIMENSIONS["bias"],
        isCalibration=True,
        minimum=0,
    )
    dark = cT.PrerequisiteInput(
        doc="Assembled dark current, in ADU per second.",
        name="dark",
        storageClass="ImageV2",
        dimensions=_CALIBRATION_DIMENSIONS["dark"],
        isCalibration=True,
        minimum=0,
    )
    flat = cT.PrerequisiteInput(
        doc="Assembled relative response, about one.",
        name="flat",
        storageClass="ImageV2",
        dimensions=_CALIBRATION_DIMENSIONS["flat"],
        isCalibration=True,
        minimum=0,
    )
    post_isr_image = cT.Output(
        doc="Assembled image in electrons, with mask and variance.",
        name="post_isr_image",
        storageClass="MaskedImageV2",
        dimensions=_DIMENSIONS,
    )

    def __init__(self, *, config: IsrConfig | None = None) -> None:
        super().__init__(config=config)
        assert config is not None, "Always given by the middleware."
        for name, wanted in (("bias", config.doBias), ("dark", config.doDark), ("flat", config.doFlat)):
            if not wanted:
                delattr(self, name)


class IsrConfig(pipe_base.PipelineTaskConfig, pipelineConnections=IsrConnections):
    doBias = Field[bool](
        doc="Subtract the bias frame? It must exist if the camera has such frames; else it is used if found.",
        default=True,
    )
    doDark = Field[bool](doc="Subtract the dark frame, scaled by dark time? As for doBias.", default=True)
    doFlat = Field[bool](doc="Divide by the flat field? As for doBias.", default=True)
    overscanFitType = ChoiceField[str](
        doc="How the overscan is modelled.",
        allowed={
            "row": "Mean of each row, smoothed along the column.",
            "constant": "One number per amplifier.",
        },
        default="row",
    )
    overscanSmoothing = RangeField(
        dtype=int,
        doc="Rows over which a row-by-row overscan is median-smoothed; 1 for none.",
        default=51,
        min=1,
    )
    minFlat = RangeField(dtype=float, doc="Pixels whose flat is below this are bad.", default=0.05, min=0.0)
    growSaturation = RangeField(
        dtype=int, doc="Pixels by which the saturated areas are grown.", default=1, min=0
    )
    doCosmicRay = Field[bool](doc="Find and mask cosmic rays?", default=True)
    cosmicRayThreshold = RangeField(
        dtype=float,
        doc="Significance of the Laplacian above which a pixel is a cosmic ray.",
        default=4.5,
        min=0.0,
    )
    cosmicRayContrast = RangeField(
        dtype=float,
        doc="Least ratio of the Laplacian to the fine structure; raise it if stars' cores get masked.",
        default=5.0,
        min=0.0,
    )
    cosmicRayIterations = RangeField(dtype=int, doc="Passes of the cosmic-ray finder.", default=2, min=1)


class IsrTask(pipe_base.PipelineTask):
    """Remove the instrument's signature from one raw image.

    In this order: overscan subtraction and assembly, saturation and defect masks, bias, dark, gain, variance
    (read noise and photon noise), flat field, cosmic rays.  Masked pixels keep their values; nothing is
    interpolated.
    """

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = IsrConfig
    _DefaultName: ClassVar[str] = "isr"
    config: IsrConfig

    def runQuantum(
        self,
        butlerQC: pipe_base.QuantumContext,
        inputRefs: pipe_base.InputQuantizedConnection,
        outputRefs: pipe_base.OutputQuantizedConnection,
    ) -> None:
        data_id: Any = butlerQC.quantum.dataId
        inputs = butlerQC.get(inputRefs)
        origin = f"camera dataset of {data_id['instrument']}"
        camera = CameraDescription.from_dict(inputs.pop("camera"), origin=origin)
        exposure = data_id.records["exposure"]
        calibrations = {name: inputs.get(name) for name in _CALIBRATION_DIMENSIONS}
        self._check_calibrations(camera, calibrations, data_id)
        outputs = self.run(
            inputs["raw"],
            camera,
            detector=data_id["detector"],
            exposure_time=exposure.exposure_time or 0.0,
            dark_time=exposure.dark_time,
            boresight=_boresight(exposure),
            **calibrations,
        )
        butlerQC.put(outputs, outputRefs)

    def run(
        self,
        raw: Image,
        camera: CameraDescription,
        *,
        detector: int,
        bias: Image | None = None,
        dark: Image | None = None,
        flat: Image | None = None,
        exposure_time: float = 0.0,
        dark_time: float | None = None,
        boresight: tuple[float, float, float] | None = None,
    ) -> pipe_base.Struct:
        """Process one raw image.

        Parameters
        ----------
        raw
            Raw pixels in ADU.
        camera
            The camera.
        detector
            Identifier of the detector.
        bias, dark, flat
            Assembled calibration frames, in ADU, ADU per second and relative response; `None` to do without.
        exposure_time
            Seconds.
        dark_time
            Seconds during which dark current was collected; the exposure time by default.
        boresight
            Right ascension, declination and position angle in degrees, from which the image gets its first
            projection on the sky; without it, it gets none.

        Returns
        -------
        result
            ``post_isr_image`` (`lsst.images.MaskedImage`): electrons; one mask plane each for defects,
            saturation and cosmic rays.
        """
        described = camera.get_detector(detector)
        assembled = assemble(
            raw.array,
            described,
            overscan_fit=self.config.overscanFitType,
            smooth=self.config.overscanSmoothing,
        )
        bad = self._find_defects(described, assembled.image)
        electrons, variance, response = self._to_electrons(
            assembled,
            described,
            bias=bias,
            dark=dark,
            flat=flat,
            dark_time=exposure_time if dark_time is None else dark_time,
        )
        bad |= ~(response > self.config.minFlat)
        usable_response = np.where(bad, np.float32(1.0), response)
        electrons /= usable_response
        variance /= usable_response**2
        bad |= ~np.isfinite(electrons)
        electrons[bad & ~np.isfinite(electrons)] = 0.0
        variance[~np.isfinite(variance)] = assembled.read_noise[~np.isfinite(variance)] ** 2

        projection = self._first_projection(camera, detector, boresight)
        mask = Mask(schema=make_mask_schema(), bbox=described.bbox)
        mask.set("BAD", bad)
        saturated = assembled.saturated
        if self.config.growSaturation and saturated.any():
            saturated = scipy.ndimage.binary_dilation(saturated, iterations=self.config.growSaturation)
        mask.set("SATURATED", saturated)
        if self.config.doCosmicRay:
            rays = find_cosmic_rays(
                electrons,
                assembled.read_noise / usable_response,
                ignore=plane_union(mask, "BAD", "SATURATED"),
                threshold=self.config.cosmicRayThreshold,
                contrast=self.config.cosmicRayContrast,
                iterations=self.config.cosmicRayIterations,
            )
            mask.set("COSMIC_RAY", rays)
        self._report(assembled, mask)
        result = MaskedImage(
            Image(electrons, bbox=described.bbox, unit=u.electron),
            mask=mask,
            variance=Image(variance, bbox=described.bbox, unit=u.electron**2),
            sky_projection=projection,
        )
        return pipe_base.Struct(post_isr_image=result)

    def _to_electrons(
        self,
        assembled: AssembledImage,
        described: DetectorDescription,
        *,
        bias: Image | None,
        dark: Image | None,
        flat: Image | None,
        dark_time: float,
    ) -> tuple[Image32, Image32, Image32]:
        """Return the image, its variance and the response that both are still to be divided by."""
        image = assembled.image.copy()
        if bias is not None:
            image -= _pixels_of(bias, "bias", described)
        dark_electrons: Image32 | float = 0.0
        if dark is not None:
            dark_adu = _pixels_of(dark, "dark", described) * np.float32(dark_time)
            image -= dark_adu
            dark_electrons = np.maximum(dark_adu, 0.0) * assembled.gain
        image *= assembled.gain
        variance = np.maximum(image, 0.0) + dark_electrons + assembled.read_noise**2
        response = np.ones_like(image) if flat is None else _pixels_of(flat, "flat", described)
        return image, variance.astype(np.float32), response

    def _find_defects(self, described: DetectorDescription, image: Image32) -> npt.NDArray[np.bool_]:
        bad = ~np.isfinite(image)
        for defect in described.defects:
            bad[defect.slices] = True
        return np.asarray(bad)

    def _first_projection(
        self, camera: CameraDescription, detector: int, boresight: tuple[float, float, float] | None
    ) -> SkyProjection[DetectorFrame] | None:
        if boresight is None:
            self.log.warning("No pointing is known: the image gets no projection on the sky.")
            return None
        return camera.initial_sky_projection(detector, *boresight)

    def _check_calibrations(self, camera: CameraDescription, found: dict[str, Any], data_id: Any) -> None:
        for name, wanted in (
            ("bias", self.config.doBias),
            ("dark", self.config.doDark),
            ("flat", self.config.doFlat),
        ):
            if wanted and found[name] is None and name in camera.calibrations:
                kept = {key: data_id[key] for key in _CALIBRATION_DIMENSIONS[name]}
                raise CalibrationMissingError(
                    f"No {name} for {kept} valid at exposure {data_id['exposure']} in the input "
                    f"collections, and by its description {camera.name} has {name} frames: certify one, or "
                    f"set do{name.title()}=False."
                )

    def _report(self, assembled: AssembledImage, mask: Mask) -> None:
        for name, (level, spread) in assembled.overscan.items():
            self.metadata[f"overscanLevel_{name}"] = level
            self.metadata[f"overscanNoise_{name}"] = spread
        for plane, key in (
            ("BAD", "nPixBad"),
            ("SATURATED", "nPixSaturated"),
            ("COSMIC_RAY", "nPixCosmicRay"),
        ):
            self.metadata[key] = int(np.count_nonzero(mask.get(plane)))
        self.log.info(
            "Masked %d bad, %d saturated and %d cosmic-ray pixels.",
            self.metadata["nPixBad"],
            self.metadata["nPixSaturated"],
            self.metadata["nPixCosmicRay"],
        )


def _pixels_of(frame: Image, name: str, described: DetectorDescription) -> Image32:
    if frame.array.shape != (described.ny, described.nx):
        raise RawShapeError(
            f"{name} frame of detector {described.id} ({described.name}) has shape {frame.array.shape}; the "
            f"assembled detector has {(described.ny, described.nx)}"
        )
    return frame.array.astype(np.float32)


def _boresight(exposure: Any) -> tuple[float, float, float] | None:
    if exposure.tracking_ra is None or exposure.tracking_dec is None:
        return None
    return exposure.tracking_ra, exposure.tracking_dec, exposure.sky_angle or 0.0
