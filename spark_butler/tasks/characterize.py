"""Characterize one image: its sky background, its PSF, and the sources on it."""

from __future__ import annotations

__all__ = ("CharacterizeConfig", "CharacterizeConnections", "CharacterizeTask", "NoPsfStarsError")

import math
from typing import Any, ClassVar

import astropy.table
import astropy.units as u
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astro_metadata_translator import ObservationInfo
from lsst.images import Box, MaskedImage
from lsst.pex.config import Field, RangeField

from ..errors import UserError
from ..obs.assembly import noise_floor
from ..obs.camera.description import CameraDescription
from .connections import Inputs, Outputs, connect_camera
from .frames import camera_of_image, describe_observation, make_detector, make_source_ids, plane_union
from .pixels import BoolArray, Image32
from .pixels.artifacts import find_cosmic_rays, find_defects, star_contrast
from .pixels.background import estimate_background, mask_sources
from .pixels.deblend import find_hidden
from .pixels.detection import detect_sources, sky_variance
from .pixels.psf_fit import fit_psf, stamp_radius
from .pixels.psf_model import FWHM_PER_SIGMA, PsfModel
from .pixels.psf_stars import estimate_psf
from .pixels.robust import choose_reserved
from .pixels.streaks import find_aligned
from .visit_summary import Characterized, make_preliminary_image

_DIMENSIONS = ("instrument", "visit", "detector")


class NoPsfStarsError(UserError, RuntimeError):
    """An image has too few stars for its PSF."""


class CharacterizeConnections(pipe_base.PipelineTaskConnections, dimensions=_DIMENSIONS):
    post_isr_image = cT.Input(
        doc="Assembled image in electrons, with mask and variance; a visit has one exposure.",
        name="post_isr_image",
        storageClass="MaskedImageV2",
        dimensions=("instrument", "exposure", "detector"),
    )
    camera = connect_camera()
    preliminary_visit_image = cT.Output(
        doc="Sky-subtracted image in electrons with PSF and first projection.",
        name="preliminary_visit_image",
        storageClass="VisitImage",
        dimensions=_DIMENSIONS,
    )
    preliminary_source = cT.Output(
        "preliminary_source", "ArrowAstropy", "Detected peaks.", dimensions=_DIMENSIONS
    )


class CharacterizeConfig(pipe_base.PipelineTaskConfig, pipelineConnections=CharacterizeConnections):
    background_cell = RangeField(
        dtype=int,
        doc="Size in pixels of the cells that the sky is measured in; nebulous fields need small ones. "
        "None takes a sixteenth of the image's shorter side, but at least 32 and at most 128.",
        default=None,
        optional=True,
        min=8,
    )
    background_smooth = RangeField("Width in cells of the median filter of the sky.", int, 3, min=1)
    initial_fwhm = RangeField("First guess of the PSF's FWHM in pixels.", float, 4.0, min=1.0)
    max_iterations = RangeField(
        "Most rounds of background, detection and PSF; two are always made.", int, 4, min=2
    )
    psf_tolerance = RangeField(
        "The rounds end when the width of the PSF changes by less than this fraction.", float, 0.02, min=0.0
    )
    detection_threshold = RangeField(
        "Least signal-to-noise ratio of a source in the matched filter.", float, 5.0, min=1.0
    )
    peak_contrast = RangeField(
        dtype=float,
        doc="Least depth, in units of the noise, of the saddle between a peak and a brighter source.",
        default=2.0,
        min=0.0,
    )
    do_defects = Field[bool](
        doc="Find and mask dead pixels and hot or dead columns that the camera's description does not name?",
        default=True,
    )
    do_cosmic_rays = Field[bool]("Find and mask cosmic rays?", default=True)
    cosmic_ray_threshold = RangeField(
        "Significance of the Laplacian above which a pixel is a cosmic ray.", float, 4.5, min=0.0
    )
    cosmic_ray_contrast = RangeField(
        dtype=float,
        doc="Least ratio of the Laplacian to the fine structure; it is raised where stars are so sharp that "
        "they would exceed it.",
        default=5.0,
        min=0.0,
    )
    cosmic_ray_iterations = RangeField("Passes of the cosmic-ray finder.", int, 2, min=1)
    psf_min_snr = RangeField("Least signal-to-noise ratio of a PSF star.", float, 30.0, min=5.0)
    psf_max_stars = RangeField("Most PSF candidates.", int, 300, min=1)
    psf_reserved_fraction = RangeField(
        dtype=float,
        doc="Fraction of the PSF candidates that are left out of the fit to judge it, if 80 others are left.",
        default=0.15,
        min=0.0,
        max=0.5,
        inclusiveMax=True,
    )
    psf_order = RangeField(
        dtype=int,
        doc="Largest order of the polynomials that the PSF's width and ellipticity follow over the detector; "
        "10 stars allow 1, 24 allow 2.",
        default=2,
        min=0,
        max=2,
        inclusiveMax=True,
    )
    psf_min_stars = RangeField("Least number of PSF stars.", int, 3, min=1)
    require_psf_stars = Field[bool](
        doc="Fail if there are fewer PSF stars? Else the last guess of the PSF is used, with a warning.",
        default=False,
    )


class CharacterizeTask(pipe_base.PipelineTask):
    """Model the background and the PSF and detect sources.

    Each round measures the sky with the sources found so far masked, detects with a filter as wide as the PSF
    found so far, and measures the PSF on the bright, isolated stars among the detections.
    """

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = CharacterizeConfig
    _DefaultName: ClassVar[str] = "characterize"
    config: CharacterizeConfig

    def runQuantum(self, butlerQC: pipe_base.QuantumContext, inputRefs: Inputs, outputRefs: Outputs) -> None:
        data_id: Any = butlerQC.quantum.dataId
        inputs = butlerQC.get(inputRefs)
        origin = f"camera dataset of {data_id['instrument']}"
        camera = CameraDescription.from_dict(inputs["camera"], origin=origin)
        outputs = self.run(
            inputs["post_isr_image"],
            camera,
            detector=data_id["detector"],
            band=data_id["band"],
            obs_info=describe_observation(
                camera,
                data_id["detector"],
                inputRefs.post_isr_image.dataId.records["exposure"],
                data_id["visit"],
            ),
        )
        outputs.preliminary_source["id"] = make_source_ids(data_id, len(outputs.preliminary_source))
        butlerQC.put(outputs, outputRefs)

    def run(
        self,
        post_isr_image: MaskedImage,
        camera: CameraDescription,
        *,
        detector: int,
        band: str,
        obs_info: ObservationInfo,
    ) -> pipe_base.Struct:
        """Characterize one image.

        Parameters
        ----------
        post_isr_image
            Image in electrons with mask, variance and projection.
        camera
            The camera.
        detector
            Identifier of the detector.
        band
            Band of the filter.
        obs_info
            What is known about the exposure.

        Returns
        -------
        result
            ``preliminary_visit_image`` (`lsst.images.VisitImage`) and ``preliminary_source``
            (`astropy.table.Table` with ``id`` counting from 1, ``x``, ``y`` [pixel], ``snr``, ``psf_star``,
            ``psf_reserved``, ``streak``).
        """
        if post_isr_image.sky_projection is None:
            raise ValueError(
                "The image has no projection on the sky: its exposure record "
                "has no pointing (tracking_ra and tracking_dec)."
            )
        camera = camera_of_image(camera, post_isr_image.metadata)
        state = self._iterate(post_isr_image, noise_floor(camera.get_detector(detector)))
        described = make_detector(camera, detector, visit=obs_info.visit_id)
        image = make_preliminary_image(post_isr_image, state, described, band, obs_info)
        detections = state.detections
        numbers = np.arange(len(detections))
        source = astropy.table.Table(
            {
                "id": (numbers + 1).astype(np.int64),
                "x": detections.x * u.pix,
                "y": detections.y * u.pix,
                "snr": detections.significance,
                "psf_star": np.isin(numbers, state.stars),
                "psf_reserved": np.isin(numbers, state.reserved),
                "streak": detections.streak
                | find_aligned(detections.x, detections.y, image.bbox.shape, state.sigma),
            }
        )
        self.metadata["nDetections"] = len(detections)
        self.metadata["nPsfStars"] = int(state.stars.size)
        self.metadata["psfFwhm"] = state.psf.fwhm
        self.metadata["nPixCosmicRay"] = int(np.count_nonzero(state.rays))
        self.metadata["skyLevel"] = float(np.median(state.mesh.level))
        self.metadata["skyNoise"] = state.mesh.noise
        self.log.info(
            "%d detections; PSF FWHM %.2f pixels from %d stars; sky %.1f +- %.1f electrons.",
            len(detections),
            state.psf.fwhm,
            state.stars.size,
            self.metadata["skyLevel"],
            state.mesh.noise,
        )
        return pipe_base.Struct(preliminary_visit_image=image, preliminary_source=source)

    def _iterate(self, image: MaskedImage, floor: Image32) -> Characterized:
        config = self.config
        pixels, variance = image.image.array, image.variance.array
        defects = plane_union(image.mask, "BAD", "NO_DATA")
        saturated = plane_union(image.mask, "SATURATED")
        sources = np.zeros(pixels.shape, dtype=bool)
        rays = np.zeros(pixels.shape, dtype=bool)
        sigma = config.initial_fwhm / FWHM_PER_SIGMA
        cell = config.background_cell or min(max(min(pixels.shape) // 16, 32), 128)
        for step in range(config.max_iterations):
            hidden = defects | rays
            mesh = estimate_background(
                pixels, hidden | saturated | sources, cell=cell, smooth=config.background_smooth
            )
            background = mesh.as_field(image.bbox).render(dtype=np.float32).array
            subtracted = pixels - background
            sky = sky_variance(pixels, variance, background, floor)
            if step == 0 and config.do_defects:
                found = find_defects(subtracted / np.sqrt(sky), defects | saturated)
                defects, hidden = defects | found, hidden | found
            detections = detect_sources(
                subtracted,
                variance,
                sky,
                hidden,
                sigma,
                threshold=config.detection_threshold,
                contrast=config.peak_contrast,
                # Sharp peaks can be identified only after the PSF has been measured.
                reject_sharp=step > 0,
            )
            psf = estimate_psf(
                subtracted,
                hidden | saturated,
                detections,
                sigma,
                min_significance=config.psf_min_snr,
                max_stars=config.psf_max_stars,
                min_stars=config.psf_min_stars,
            )
            previous, sigma = sigma, max(psf.sigma, 0.5) if math.isfinite(psf.sigma) else sigma
            if step == 0 and config.do_cosmic_rays:
                # The first round measures the PSF, so that later ones keep stars as sharp as cosmic rays.
                rays = self._find_cosmic_rays(pixels, variance, defects | saturated, sigma)
            elif step > 0 and abs(sigma - previous) <= config.psf_tolerance * sigma:
                break
            sources = mask_sources(detections, sigma, pixels.shape)
        state = Characterized(sigma, mesh, subtracted, detections, psf.candidates, defects, rays)
        self._fit_psf(state, variance, sky, hidden | saturated, image.bbox, cell)
        return state

    def _fit_psf(
        self, state: Characterized, variance: Image32, sky: Image32, ignore: BoolArray, bbox: Box, cell: int
    ) -> None:
        """Fit the PSF; then find hidden sources, and repeat sky and PSF with all sources subtracted."""
        config, shape, sigma = self.config, variance.shape, state.sigma
        first, candidates = state.detections, state.stars
        state.psf = PsfModel.constant(sigma * FWHM_PER_SIGMA, (shape[0], shape[1]))
        state.stars = candidates[:0]
        stamps, certain = None, len(first)
        held = choose_reserved(first.significance[candidates], config.psf_reserved_fraction)
        for step in range(2):
            fit = fit_psf(
                *(state.subtracted, sky, ignore, first.x[candidates], first.y[candidates], sigma),
                max_order=config.psf_order,
                min_stars=config.psf_min_stars,
                stamps=stamps,
                reserved=held,
            )
            if fit is None:
                if step == 0:
                    self._no_psf(len(first), sigma)
                return
            state.psf, state.psf_scatter = fit.model, fit.scatter
            found = find_hidden(
                *(state.subtracted, variance, ignore, first, fit.model),
                stars=candidates,
                stamp_radius=stamp_radius(sigma),
                certain=certain,
                threshold=config.detection_threshold,
            )
            state.detections, stamps = found.detections, found.stars
            state.stars = np.nonzero(np.isin(found.origin, candidates[fit.used]))[0]
            state.reserved = np.nonzero(np.isin(found.origin, candidates[fit.reserved]))[0]
            if step == 0:
                first, certain = found.detections, int(np.count_nonzero(found.origin >= 0))
                kept = np.nonzero(np.isin(found.origin, candidates))[0]
                held = np.isin(found.origin[kept], candidates[held])
                candidates = kept
                more = estimate_background(
                    found.residual, ignore | found.bright, cell=cell, smooth=config.background_smooth
                )
                state.mesh = state.mesh.plus(more)
                state.subtracted = state.subtracted - more.as_field(bbox).render(dtype=np.float32).array

    def _find_cosmic_rays(
        self, pixels: Image32, variance: Image32, ignore: BoolArray, sigma: float
    ) -> BoolArray:
        # The width of the profile does not include the pixel.
        sharpest = star_contrast(FWHM_PER_SIGMA * math.sqrt(max(sigma**2 - 1.0 / 12.0, 0.1)))
        return find_cosmic_rays(
            pixels,
            np.sqrt(np.maximum(variance - np.maximum(pixels, 0.0), 1.0)),
            ignore=ignore,
            threshold=self.config.cosmic_ray_threshold,
            contrast=max(self.config.cosmic_ray_contrast, 2.0 * sharpest),
            iterations=self.config.cosmic_ray_iterations,
        )

    def _no_psf(self, n_detections: int, sigma: float) -> None:
        message = (
            f"Fewer than {self.config.psf_min_stars} isolated stars with a signal-to-noise ratio of "
            f"{self.config.psf_min_snr:g} among {n_detections} detections"
        )
        if self.config.require_psf_stars:
            raise NoPsfStarsError(f"{message}: no PSF.")
        self.log.warning("%s: a PSF of FWHM %.2f pixels is assumed.", message, sigma * FWHM_PER_SIGMA)
