"""Images as they are stored, and summaries of detectors and visits.

Runs in workers.
"""

from __future__ import annotations

__all__ = (
    "Characterized",
    "VisitSummaryConfig",
    "VisitSummaryConnections",
    "VisitSummaryTask",
    "make_preliminary_image",
    "make_summary_table",
    "make_visit_image",
    "summarize",
)

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import astropy.table
import astropy.units as u
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from astro_metadata_translator import ObservationInfo
from lsst.images import (
    Background,
    BackgroundMap,
    Image,
    MaskedImage,
    ObservationSummaryStats,
    SkyProjection,
    VisitImage,
)
from lsst.images.fields import ChebyshevField

from .astrometry import AstrometrySolution, no_indices
from .frames import plane_union
from .photometry import ZeroPoint
from .pixels import BoolArray, Image32, IntArray
from .pixels.background import BackgroundMesh
from .pixels.detection import Detections
from .pixels.measurement import model_radius
from .pixels.psf_model import FWHM_PER_SIGMA, PsfModel
from .pixels.stamps import measure_moments
from .quality import Measure, names_beyond
from .sources import SourceMeasurements


@dataclasses.dataclass
class Characterized:
    """Findings of `CharacterizeTask` on an image, which its rounds improve."""

    sigma: float
    mesh: BackgroundMesh
    subtracted: Image32
    detections: Detections
    stars: IntArray
    defects: BoolArray
    rays: BoolArray
    psf: PsfModel = dataclasses.field(init=False)
    psf_scatter: float = math.nan
    reserved: IntArray = dataclasses.field(default_factory=no_indices)


def make_preliminary_image(
    image: MaskedImage, state: Characterized, detector: Any, band: str, obs_info: ObservationInfo
) -> VisitImage:
    """Return the sky-subtracted image with its PSF, in electrons."""
    bbox = image.bbox
    mask = image.mask.copy()
    mask.set("BAD", state.defects & ~image.mask.get("NO_DATA"))
    mask.set("COSMIC_RAY", state.rays)
    mask.set("DETECTED", state.detections.footprint)
    edge = np.ones(bbox.shape, dtype=bool)
    border = math.ceil(3.0 * state.sigma)
    edge[border:-border, border:-border] = False
    mask.set("DETECTION_EDGE", edge)
    field = state.mesh.as_field(bbox, unit=u.electron)
    fwhm = state.psf.parameters(*state.psf.grid())[0]
    stamp = state.psf.central_stamp(model_radius(state.psf))
    moments = measure_moments(stamp, np.zeros(1), np.zeros(1), state.psf.sigma)
    stats = ObservationSummaryStats(
        psfSigma=float(moments.sigma[0]),
        psfArea=float(stamp.sum() ** 2 / (stamp**2).sum()),
        psfIxx=float(moments.ixx[0]),
        psfIyy=float(moments.iyy[0]),
        psfIxy=float(moments.ixy[0]),
        nPsfStar=int(state.stars.size),
        psfStarDeltaSizeScatter=state.psf_scatter * state.sigma,
        psfTraceRadiusDelta=float(np.ptp(fwhm)) / FWHM_PER_SIGMA,
        skyBg=float(np.median(state.mesh.level)),
        skyNoise=state.mesh.noise,
        meanVar=float(np.mean(image.variance.array[~plane_union(mask, "BAD", "DETECTED")])),
        expTime=obs_info.exposure_time.to_value(u.s) if obs_info.exposure_time is not None else math.nan,
    )
    return VisitImage(
        Image(state.subtracted, bbox=bbox, unit=u.electron),
        mask=mask,
        variance=image.variance.copy(),
        sky_projection=image.sky_projection,
        obs_info=obs_info,
        summary_stats=stats,
        psf=state.psf.to_piff(bbox, 2 * model_radius(state.psf) + 1),
        detector=detector,
        backgrounds=BackgroundMap(
            [Background("sky", field, "Sky in cells, median-filtered, Akima splines.")], subtracted="sky"
        ),
        band=band,
    )


def summarize(
    image: VisitImage,
    measured: SourceMeasurements,
    projection: SkyProjection[Any],
    astrometry: AstrometrySolution,
    zero_point: ZeroPoint,
) -> ObservationSummaryStats:
    """Return the image's statistics with what its calibration adds."""
    bbox = image.bbox
    x_edges, y_edges = (bbox.x.start - 0.5, bbox.x.stop - 0.5), (bbox.y.start - 0.5, bbox.y.stop - 0.5)
    corners = projection.pixel_to_sky(
        x=np.array([x_edges[0], x_edges[1], x_edges[1], x_edges[0]]),
        y=np.array([y_edges[0], y_edges[0], y_edges[1], y_edges[1]]),
    )
    center = projection.pixel_to_sky(x=0.5 * sum(x_edges), y=0.5 * sum(y_edges))
    # Noise of the PSF flux of a source that is as faint as the sky allows.
    limit = 5.0 * image.summary_stats.skyNoise * math.sqrt(image.summary_stats.psfArea)
    limit *= measured.aperture_correction
    # Where the steps of the digits are coarser than the noise, the sky is without measurable noise.
    mag_lim = zero_point.magnitude - 2.5 * math.log10(limit) if limit > 0.0 else math.nan
    return image.summary_stats.model_copy(
        update={
            "ra": float(center.ra.deg),
            "dec": float(center.dec.deg),
            "raCorners": tuple(float(value) for value in corners.ra.deg),
            "decCorners": tuple(float(value) for value in corners.dec.deg),
            "pixelScale": astrometry.pixel_scale,
            "zeroPoint": zero_point.magnitude,
            "magLim": mag_lim,
            "astromOffsetMean": astrometry.offset,
            "astromOffsetStd": astrometry.scatter,
        }
    )


def make_summary_table(
    image: VisitImage,
    measured: SourceMeasurements,
    stats: ObservationSummaryStats,
    astrometry: AstrometrySolution,
    zero_point: ZeroPoint,
    n_references: int,
    measures: Sequence[Measure],
) -> astropy.table.Table:
    """Return the one row of ``detector_summary``; a measure NAME is in the column ``quality_NAME``."""
    columns: dict[str, tuple[Any, u.UnitBase | None]] = {
        "visit": (np.int64(image.obs_info.visit_id or 0), None),
        "detector": (np.int32(image.detector.id), None),
        "detector_name": (image.detector.name, None),
        "band": (image.band, None),
        "physical_filter": (image.physical_filter, None),
        "ra": (stats.ra, u.deg),
        "dec": (stats.dec, u.deg),
        "raCorners": (list(stats.raCorners), u.deg),
        "decCorners": (list(stats.decCorners), u.deg),
        "pixelScale": (stats.pixelScale, u.arcsec / u.pix),
        "psfSigma": (stats.psfSigma, u.pix),
        "psfFwhm": (measured.model.fwhm, u.pix),
        "nPsfStar": (np.int32(stats.nPsfStar), None),
        "skyBg": (stats.skyBg, u.electron),
        "skyNoise": (stats.skyNoise, u.electron),
        "expTime": (stats.expTime, u.s),
        "apertureCorrection": (measured.aperture_correction, None),
        "apertureCorrectionErr": (measured.aperture_correction_err, None),
        "nApertureCorrection": (np.int32(measured.n_aperture_correction), None),
        "zeroPoint": (stats.zeroPoint, u.mag),
        "zeroPointErr": (zero_point.error, u.mag),
        "zeroPointScatter": (zero_point.scatter, u.mag),
        "nZeroPoint": (np.int32(zero_point.used.size), None),
        "magLim": (stats.magLim, u.mag),
        "astromOffset": (astrometry.offset, u.arcsec),
        "astromScatter": (astrometry.scatter, u.arcsec),
        "nRefMatched": (np.int32(astrometry.sources.size), None),
        "nRef": (np.int32(n_references), None),
        "nSource": (np.int32(len(measured.psf.x)), None),
        "image_flag": (bool(names_beyond(measures)), None),
        "image_flag_reasons": (names_beyond(measures), None),
        **{f"quality_{measure.name}": (float(measure.value), None) for measure in measures},
    }
    return astropy.table.Table(
        [astropy.table.Column([value], name, unit=unit) for name, (value, unit) in columns.items()]
    )


def make_visit_image(
    image: VisitImage,
    projection: SkyProjection[Any],
    measured: SourceMeasurements,
    zero_point: ZeroPoint,
    stats: ObservationSummaryStats,
) -> VisitImage:
    """Return the calibrated image."""
    calibrated = math.isfinite(zero_point.magnitude)
    factor = zero_point.njy_per_count if calibrated else 1.0
    unit = u.nJy if calibrated else u.electron
    scaling = (
        ChebyshevField(image.bbox, np.array([[factor]]), unit=u.nJy / u.electron) if calibrated else None
    )
    return VisitImage(
        Image((image.image.array * factor).astype(np.float32), bbox=image.bbox, unit=unit),
        mask=image.mask.copy(),
        variance=Image((image.variance.array * factor**2).astype(np.float32), bbox=image.bbox, unit=unit**2),
        sky_projection=projection,
        obs_info=image.obs_info,
        summary_stats=stats,
        photometric_scaling=scaling,
        psf=image.psf,
        detector=image.detector,
        aperture_corrections={"psfFlux": _stored_correction(image, measured)},
        # In electrons, as measured: the scaling takes it to the image's unit.
        backgrounds=image.backgrounds,
        band=image.band,
    )


def _stored_correction(image: VisitImage, measured: SourceMeasurements) -> ChebyshevField:
    """Return the factor from fluxes by the stored PSF, whose stamps sum to one, to the catalog's fluxes."""
    model = measured.model
    x, y = model.grid()
    ix, iy = np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)
    radius = image.psf.kernel_bbox.x.size // 2
    inside = model.stamps(x, y, ix, iy, radius).sum(axis=(1, 2))
    return ChebyshevField.fit(
        image.bbox,
        measured.aperture_correction / inside,
        x=x + image.bbox.x.start,
        y=y + image.bbox.y.start,
        order=min(model.order, 2),
    )


class VisitSummaryConnections(pipe_base.PipelineTaskConnections, dimensions=("instrument", "visit")):
    detector_summary = cT.Input(
        doc="One row for each detector.",
        name="detector_summary",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
        multiple=True,
    )
    visit_summary = cT.Output(
        doc="The rows of all the visit's detectors, sorted by detector.",
        name="visit_summary",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit"),
    )


class VisitSummaryConfig(pipe_base.PipelineTaskConfig, pipelineConnections=VisitSummaryConnections):
    pass


class VisitSummaryTask(pipe_base.PipelineTask):
    """Stack the detectors' summary rows of one visit."""

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = VisitSummaryConfig
    _DefaultName: ClassVar[str] = "visit_summary"

    def run(self, detector_summary: Sequence[astropy.table.Table]) -> pipe_base.Struct:
        """Stack the detectors' tables of one row: ``visit_summary`` (`astropy.table.Table`)."""
        table = astropy.table.vstack(list(detector_summary), metadata_conflicts="silent")
        table.sort("detector")
        zero_points = np.asarray(table["zeroPoint"], dtype=np.float64)
        self.metadata["nDetectors"] = len(table)
        self.metadata["nCalibrated"] = int(np.count_nonzero(np.isfinite(zero_points)))
        flagged = np.asarray(table["image_flag"], dtype=bool)
        self.metadata["nFlagged"] = int(np.count_nonzero(flagged))
        for row in table[flagged]:
            self.log.warning("Detector %s is flagged: %s.", row["detector_name"], row["image_flag_reasons"])
        self.log.info(
            "%d detectors, %d with a zero point, %d flagged; %d sources.",
            len(table),
            self.metadata["nCalibrated"],
            self.metadata["nFlagged"],
            int(np.sum(table["nSource"])),
        )
        return pipe_base.Struct(visit_summary=table)
