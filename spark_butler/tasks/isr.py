"""Instrument signature removal: from raw pixels to electrons with a mask and a variance.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("CalibrationMissingError", "CalibrationRangeError", "IsrConfig", "IsrConnections", "IsrTask")

from collections.abc import Mapping
from typing import Any, ClassVar

import astropy.table
import astropy.units as u
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import numpy.typing as npt
import scipy.ndimage
from lsst.images import Box, DetectorFrame, Image, Mask, MaskedImage, SkyProjection
from lsst.pex.config import Field, RangeField

from ..errors import UserError
from ..obs.assembly import FLAT_MEDIAN, AssembledImage, RawShapeError, assemble, assemble_planes, noise_floor
from ..obs.camera.defects import to_mask
from ..obs.camera.description import CameraDescription, DetectorDescription
from ..obs.camera.frame_detector import describe_frame, linearize, with_photon_transfer
from ..obs.camera.header_wcs import header_wcs
from ..obs.masters import pixels_of, variance_of
from .connections import CALIBRATION_DIMENSIONS, Inputs, Outputs, connect_calibration, connect_camera
from .frames import FRAME_DETECTOR, make_mask_schema

type Image32 = npt.NDArray[np.float32]

_DIMENSIONS = ("instrument", "exposure", "detector")
_SWITCHES = {
    **{"bias": "do_bias", "dark": "do_dark", "flat": "do_flat"},
    **{"defects": "do_defects", "linearizer": "do_linearize", "ptc": "use_ptc_gains"},
}
"""Configuration field that switches on each calibration dataset."""


class CalibrationMissingError(UserError, LookupError):
    """A calibration frame that the camera must have is not in the input collections."""


class CalibrationRangeError(UserError, ValueError):
    """A calibration frame has values that no frame of its kind can have."""


class IsrConnections(pipe_base.PipelineTaskConnections, dimensions=_DIMENSIONS):
    raw = cT.Input("raw", "ImageV2", "Raw pixels in ADU, overscan included.", dimensions=_DIMENSIONS)
    camera = connect_camera()
    bias = connect_calibration("bias", "Assembled bias level left after overscan subtraction, in ADU.")
    dark = connect_calibration("dark", "Assembled dark current, in ADU per second.")
    flat = connect_calibration("flat", "Assembled relative response, about one.")
    defects = connect_calibration("defects", "Rectangles of bad pixels, beside those of the description.")
    linearizer = connect_calibration(
        "linearizer", "Polynomials that make the signal proportional to the light."
    )
    ptc = connect_calibration("ptc", "Measured gains and read noises.", minimum=1)
    post_isr_image = cT.Output(
        doc="Assembled image in electrons, with mask and variance.",
        name="post_isr_image",
        storageClass="MaskedImageV2",
        dimensions=_DIMENSIONS,
    )

    def __init__(self, *, config: IsrConfig | None = None) -> None:
        super().__init__(config=config)
        assert config is not None, "Always given by the middleware."
        for name, switch in _SWITCHES.items():
            if not getattr(config, switch):
                delattr(self, name)


class IsrConfig(pipe_base.PipelineTaskConfig, pipelineConnections=IsrConnections):
    do_bias = Field[bool](
        doc="Subtract the bias frame? It must exist if the camera has bias frames; else it is used if found.",
        default=True,
    )
    do_dark = Field[bool]("Subtract the dark frame, scaled by dark time? As for do_bias.", default=True)
    do_flat = Field[bool]("Divide by the flat field? As for do_bias.", default=True)
    do_defects = Field[bool]("Mask the pixels of the dataset defects, if there is one?", default=True)
    do_linearize = Field[bool]("Apply the dataset linearizer, if there is one?", default=True)
    use_ptc_gains = Field[bool](
        "Use gain and read noise of the dataset ptc instead of the description's?", default=False
    )
    min_flat = RangeField("Pixels whose flat is below this are bad.", float, 0.05, min=0.0)
    use_header_wcs = Field[bool](
        doc="Start from the projection in the raw file's header, if it has one that fits the camera's "
        "description? Else from the pointing.",
        default=True,
    )
    grow_saturation = RangeField("Pixels by which the saturated areas are grown.", int, 1, min=0)


class IsrTask(pipe_base.PipelineTask):
    """Remove the instrument's signature from one raw image.

    In this order: overscan subtraction and assembly, saturation and defect masks, bias, linearity, dark,
    gain, variance (of read-out, photons and calibration frames), flat field.  Masked pixels keep their
    values; pixels are not interpolated.
    """

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = IsrConfig
    _DefaultName: ClassVar[str] = "isr"
    config: IsrConfig

    def runQuantum(self, butlerQC: pipe_base.QuantumContext, inputRefs: Inputs, outputRefs: Outputs) -> None:
        data_id: Any = butlerQC.quantum.dataId
        inputs = butlerQC.get(inputRefs)
        origin = f"camera dataset of {data_id['instrument']}"
        camera = CameraDescription.from_dict(inputs.pop("camera"), origin=origin)
        exposure = data_id.records["exposure"]
        calibrations = {name: inputs.get(name) for name in CALIBRATION_DIMENSIONS}
        self._check_calibrations(camera, calibrations, data_id)
        outputs = self.run(
            inputs["raw"],
            camera,
            detector=data_id["detector"],
            exposure_time=exposure.exposure_time or 0.0,
            dark_time=exposure.dark_time,
            boresight=_boresight(exposure),
            **{name: inputs.get(name) for name in ("defects", "linearizer", "ptc")},
            **calibrations,
        )
        butlerQC.put(outputs, outputRefs)

    def run(  # noqa: PLR0913
        self,
        raw: Image,
        camera: CameraDescription,
        *,
        detector: int,
        bias: Image | MaskedImage | None = None,
        dark: Image | MaskedImage | None = None,
        flat: Image | MaskedImage | None = None,
        defects: astropy.table.Table | None = None,
        linearizer: astropy.table.Table | None = None,
        ptc: astropy.table.Table | None = None,
        exposure_time: float = 0.0,
        dark_time: float | None = None,
        boresight: tuple[float, float, float] | None = None,
    ) -> pipe_base.Struct:
        """Process one raw image.

        Parameters
        ----------
        raw
            Raw pixels in ADU.
        camera, detector
            The camera, and the identifier of the detector.
        bias, dark, flat
            Assembled calibration frames, in ADU, ADU per second and relative response; `None` to do without.
            Their variances, if they have them, become a part of the image's.
        defects, linearizer, ptc
            Tables of the calibration pipelines; `None` to do without.
        exposure_time, dark_time
            Times in seconds in which light and dark current were collected; equal by default.
        boresight
            Right ascension, declination and position angle in degrees, from which the image gets its first
            projection on the sky; without it, it gets none.

        Returns
        -------
        result
            ``post_isr_image`` (`lsst.images.MaskedImage`): electrons; mask planes for defects and saturation.

        Raises
        ------
        RawShapeError
            Raised if the raw image or a calibration frame has another size than in the description.
        CalibrationRangeError
            Raised if the flat is not about one.
        """
        frame = describe_frame(camera, detector, raw.metadata)
        if ptc is not None:
            frame = with_photon_transfer(frame, ptc)
        assembled = assemble(raw.array, frame)
        described = assembled.detector
        bad = ~np.isfinite(assembled.image)
        for defect in described.defects:
            bad[defect.slices] = True
        if defects is not None:
            bad |= to_mask(defects, bad.shape)
        planes, given_variance = assemble_planes(raw.metadata, camera.planes, frame)
        bad |= planes.get("BAD", False)
        electrons, variance, response = self._to_electrons(
            assembled,
            {"bias": bias, "dark": dark, "flat": flat},
            linearizer,
            exposure_time if dark_time is None else dark_time,
            given_variance,
        )
        bad |= np.isnan(variance)
        bad |= ~(response > self.config.min_flat)
        usable_response = np.where(bad, np.float32(1.0), response)
        electrons /= usable_response
        variance /= usable_response**2
        bad |= ~np.isfinite(electrons)
        electrons[bad & ~np.isfinite(electrons)] = 0.0
        variance = np.where(np.isfinite(variance), variance, noise_floor(described))

        projection = self._first_projection(camera.with_detector(described), frame, boresight, raw.metadata)
        saturated = assembled.saturated | planes.get("SATURATED", False)
        mask = self._make_mask(described.bbox, planes | {"BAD": bad, "SATURATED": saturated})
        self._report(assembled, mask)
        result = MaskedImage(
            Image(electrons, bbox=described.bbox, unit=u.electron),
            mask=mask,
            variance=Image(variance, bbox=described.bbox, unit=u.electron**2),
            sky_projection=projection,
        )
        if described != camera.get_detector(detector):
            result.metadata[FRAME_DETECTOR] = described.model_dump_json()
        return pipe_base.Struct(post_isr_image=result)

    def _to_electrons(
        self,
        assembled: AssembledImage,
        masters: Mapping[str, Image | MaskedImage | None],
        linearizer: astropy.table.Table | None,
        dark_time: float,
        given_variance: Image32 | None,
    ) -> tuple[Image32, Image32, Image32]:
        """Return the image, its variance, and the response by which both must still be divided."""
        image, described = assembled.image.copy(), assembled.detector
        variance: npt.NDArray[np.floating[Any]] = np.zeros_like(image)
        if (bias := masters["bias"]) is not None:
            image -= _pixels_of(bias, "bias", described)
            variance += variance_of(bias)
        if linearizer is not None:
            linearize(image, linearizer, described)
        dark_electrons: Image32 | float = 0.0
        if (dark := masters["dark"]) is not None:
            dark_adu = _pixels_of(dark, "dark", described) * np.float32(dark_time)
            image -= dark_adu
            variance += variance_of(dark) * np.float32(dark_time) ** 2
            dark_electrons = np.maximum(dark_adu, 0.0) * assembled.gain
        image *= assembled.gain
        variance *= assembled.gain**2
        response = np.ones_like(image)
        if (flat := masters["flat"]) is not None:
            response = _response_of(flat, described)
            variance += (image / np.maximum(response, self.config.min_flat or 1e-3)) ** 2 * variance_of(flat)
        if given_variance is None:
            variance += np.maximum(image, 0.0) + dark_electrons + noise_floor(described)
        else:
            variance += given_variance * assembled.gain**2
        return image, variance.astype(np.float32), response

    def _make_mask(self, bbox: Box, planes: dict[str, npt.NDArray[np.bool_]]) -> Mask:
        mask = Mask(schema=make_mask_schema(), bbox=bbox)
        for plane, pixels in planes.items():
            if plane == "SATURATED" and self.config.grow_saturation and pixels.any():
                pixels = scipy.ndimage.binary_dilation(pixels, iterations=self.config.grow_saturation)
            mask.set(plane, pixels)
        return mask

    def _first_projection(
        self,
        camera: CameraDescription,
        frame: DetectorDescription,
        boresight: tuple[float, float, float] | None,
        header: Mapping[str, Any],
    ) -> SkyProjection[DetectorFrame] | None:
        wcs = header_wcs(header, frame) if self.config.use_header_wcs else None
        if wcs is not None:
            self.metadata["headerWcs"] = True
            return SkyProjection.from_fits_wcs(
                wcs, DetectorFrame(instrument=camera.name, detector=frame.id, bbox=frame.assembled.bbox)
            )
        if boresight is None:
            self.log.warning("No pointing is known: the image gets no projection on the sky.")
            return None
        return camera.initial_sky_projection(frame.id, *boresight)

    def _check_calibrations(self, camera: CameraDescription, found: dict[str, Any], data_id: Any) -> None:
        for name in CALIBRATION_DIMENSIONS:
            wanted = getattr(self.config, _SWITCHES[name])
            if wanted and found[name] is None and name in camera.calibrations:
                kept = {key: data_id[key] for key in CALIBRATION_DIMENSIONS[name]}
                raise CalibrationMissingError(
                    f"No {name} for {kept} valid at exposure {data_id['exposure']} in the input "
                    f"collections, and by its description {camera.name} has {name} frames: certify one, or "
                    f"set do_{name}=False."
                )

    def _report(self, assembled: AssembledImage, mask: Mask) -> None:
        for name, (level, spread) in assembled.overscan.items():
            self.metadata[f"overscanLevel_{name}"] = level
            self.metadata[f"overscanNoise_{name}"] = spread
        for name, clipped in assembled.clipped.items():
            self.metadata[f"clippedLevel_{name}"] = clipped
            self.log.warning(
                "Amplifier %s clips at %.0f ADU, below the described saturation: pixels there count as "
                "saturated.",
                name,
                clipped,
            )
        for plane, key in (("BAD", "nPixBad"), ("SATURATED", "nPixSaturated")):
            self.metadata[key] = int(np.count_nonzero(mask.get(plane)))
        self.log.info(
            "Masked %d bad and %d saturated pixels.", self.metadata["nPixBad"], self.metadata["nPixSaturated"]
        )


def _pixels_of(frame: Image | MaskedImage, name: str, described: DetectorDescription) -> Image32:
    pixels = pixels_of(frame)
    if pixels.shape != (described.ny, described.nx):
        raise RawShapeError(
            f"{name} frame of detector {described.id} ({described.name}) has shape {pixels.shape}; the "
            f"assembled detector has {(described.ny, described.nx)}"
        )
    return pixels


def _response_of(flat: Image | MaskedImage, described: DetectorDescription) -> Image32:
    response = _pixels_of(flat, "flat", described)
    finite = response[np.isfinite(response)]
    median = float(np.median(finite)) if finite.size else float("nan")
    # Every other normalization would scale the fluxes, and counts would turn every pixel into darkness.
    if not FLAT_MEDIAN[0] <= median <= FLAT_MEDIAN[1]:
        raise CalibrationRangeError(
            f"flat frame of detector {described.id} ({described.name}) has a median of {median:g}; a "
            "relative response has one of about 1: ingest it again by ingest-calibs, which normalizes flats"
        )
    return response


def _boresight(exposure: Any) -> tuple[float, float, float] | None:
    if exposure.tracking_ra is None or exposure.tracking_dec is None:
        return None
    return exposure.tracking_ra, exposure.tracking_dec, exposure.sky_angle or 0.0
