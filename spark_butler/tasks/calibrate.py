"""Measure the sources of one image and calibrate it against a reference catalog.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("CalibrateConfig", "CalibrateConnections", "CalibrateTask", "NoSourcesError")

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import astropy.table
import astropy.wcs
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np
from lsst.daf.butler import DeferredDatasetHandle
from lsst.images import SkyProjection, VisitImage
from lsst.pex.config import ConfigField, Field, ListField, RangeField

from ..errors import UserError
from .astrometry import AstrometrySolution, pixel_scale, refine_wcs
from .photometry import (
    ZeroPoint,
    fit_zero_point,
    make_match_columns,
    measure_losses,
    measure_trend,
)
from .pixels import BoolArray
from .pixels.pattern_match import measure_doubling
from .pixels.robust import choose_reserved
from .quality import (
    Measure,
    QualityConfig,
    judge,
    measure_linearity,
    measure_pixels,
    measure_psf,
    names_beyond,
)
from .references import isolated_references, load_references
from .sources import SourceMeasurements, make_source_table, measure_sources
from .visit_summary import make_summary_table, make_visit_image, summarize

_DIMENSIONS = ("instrument", "visit", "detector")

_SPOIL_FLUXES = (
    *("psf_stars", "psf_ellipticity", "psf_trend", "psf_scatter", "psf_residual"),
    *("zero_point_scatter", "zero_point_error", "zero_point_offset"),
)
"""Quality measures that make calibrated fluxes wrong if they are beyond a limit."""

_ENOUGH_ALONE = 10
"""Number of stars without neighbors from which only these make the zero point."""

_MOST_OFF = 3.0
"""Largest error in pixels of a projection that matches sources to references without being refined."""

_NO_SOURCES = (
    "No source was detected: the image is empty, wrongly calibrated or masked. Check the post_isr_image "
    "and its flat, or lower characterize's detection_threshold."
)


class NoSourcesError(UserError, RuntimeError):
    """An image has no source at all."""


class CalibrateConnections(pipe_base.PipelineTaskConnections, dimensions=_DIMENSIONS):
    preliminary_visit_image = cT.Input(
        doc="Sky-subtracted image in electrons with PSF and first projection.",
        name="preliminary_visit_image",
        storageClass="VisitImage",
        dimensions=_DIMENSIONS,
    )
    preliminary_source = cT.Input(
        "preliminary_source", "ArrowAstropy", "Detected peaks.", dimensions=_DIMENSIONS
    )
    ref_cat = cT.PrerequisiteInput(
        doc="Shards of the reference catalog: id, coord_ra and coord_dec [rad], BAND_flux [nJy].",
        name="ref_cat",
        storageClass="ArrowAstropy",
        dimensions=("htm7",),
        multiple=True,
        minimum=0,
        deferLoad=True,
    )
    visit_image = cT.Output(
        doc="Calibrated image, in nanojanskys if there is a zero point, else in electrons.",
        name="visit_image",
        storageClass="VisitImage",
        dimensions=_DIMENSIONS,
    )
    source = cT.Output("source", "ArrowAstropy", "Catalog of sources.", dimensions=_DIMENSIONS)
    detector_summary = cT.Output(
        doc="One row on the quality and calibration of this image.",
        name="detector_summary",
        storageClass="ArrowAstropy",
        dimensions=_DIMENSIONS,
    )


class CalibrateConfig(pipe_base.PipelineTaskConfig, pipelineConnections=CalibrateConnections):
    aperture_radii = ListField[float]("Radii of the apertures in pixels.", default=[3.0, 6.0, 9.0, 12.0])
    correction_radius = RangeField(
        "Radius, in FWHM of the PSF, of the aperture that PSF fluxes are corrected to.", float, 3.0, min=0.5
    )
    correction_min_snr = RangeField(
        "Least signal-to-noise ratio of stars for the aperture correction.", float, 50.0, min=1.0
    )
    calibration_min_snr = RangeField(
        "Least signal-to-noise ratio of stars for the zero point.", float, 20.0, min=1.0
    )
    photometry_min_stars = RangeField("Least number of stars for a zero point.", int, 3, min=1)
    do_astrometry = Field[bool](
        "Refine the projection? If not, sources are matched to references with the initial one.", default=True
    )
    astrometry_max_offset = RangeField(
        "Largest error of the pointing in the search, in arcseconds.", float, 120.0, min=0.0
    )
    astrometry_blind = Field[bool](
        doc="Search for any rotation and reflection, and a scale within a tenth, if a shift does not match?",
        default=True,
    )
    astrometry_max_sip_degree = RangeField(
        dtype=int,
        doc="Largest degree of the distortion's polynomials (SIP); stars left out of the fit choose it. "
        "Below 2 there is no distortion.",
        default=3,
        min=0,
        max=5,
        inclusiveMax=True,
    )
    match_radius = RangeField(
        dtype=float,
        doc="Largest distance of a source from its reference, in pixels, once the offset is known.",
        default=2.0,
        min=0.1,
    )
    astrometry_min_matches = RangeField("Least number of matches.", int, 5, min=3)
    quality = ConfigField[QualityConfig](doc="Limits of the image's quality, and the action beyond them.")
    reference_flux = Field[str](
        "Column of the reference fluxes; {band} is replaced by the band of the image.", default="{band}_flux"
    )


class CalibrateTask(pipe_base.PipelineTask):
    """Measure sources, refine the projection, and find the photometric zero point.

    Without references, or without a convincing match to them, fluxes stay instrumental: calibrated ones are
    NaN, the image stays in electrons, and the metadata and a warning report it.
    """

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = CalibrateConfig
    _DefaultName: ClassVar[str] = "calibrate"
    config: CalibrateConfig

    def run(
        self,
        preliminary_visit_image: VisitImage,
        preliminary_source: astropy.table.Table,
        ref_cat: Sequence[DeferredDatasetHandle | pipe_base.InMemoryDatasetHandle] = (),
    ) -> pipe_base.Struct:
        """Calibrate one image.

        Parameters
        ----------
        preliminary_visit_image
            Sky-subtracted image in electrons.
        preliminary_source
            Detected peaks: ``id``, ``x``, ``y``, ``psf_star``, ``psf_reserved``, ``streak``.
        ref_cat
            Shards of the reference catalog that overlap the image.

        Returns
        -------
        result
            ``visit_image`` (`lsst.images.VisitImage`), ``source`` and ``detector_summary``
            (`astropy.table.Table`).
        """
        image = preliminary_visit_image
        if not len(preliminary_source):
            raise NoSourcesError(_NO_SOURCES)
        measured = measure_sources(
            image,
            np.asarray(preliminary_source["x"], dtype=np.float64),
            np.asarray(preliminary_source["y"], dtype=np.float64),
            radii=list(self.config.aperture_radii),
            correction_radius=self.config.correction_radius,
            correction_min_snr=self.config.correction_min_snr,
        )
        if not measured.n_aperture_correction:
            self.log.warning(
                "Too few bright, isolated stars for an aperture correction: PSF fluxes stay as they are."
            )
        references = load_references(
            ref_cat, self.config.reference_flux.format(band=image.band), image.obs_info.datetime_begin
        )
        first_wcs = image.fits_wcs
        assert first_wcs is not None, "A visit image has a projection."
        astrometry = self._match(first_wcs, measured, references, image.bbox.shape)
        zero_point = self._calibrate_fluxes(measured, references, astrometry)
        flags = _read_flags(preliminary_source)
        measures = self._judge(image, measured, flags, astrometry, zero_point, references)
        if spoiled := names_beyond(measures, _SPOIL_FLUXES):
            self.log.warning("Fluxes are not calibrated: %s.", spoiled)
            zero_point = ZeroPoint()
        projection = SkyProjection.from_fits_wcs(
            astrometry.wcs, image.sky_projection.pixel_frame, x0=image.bbox.x.start, y0=image.bbox.y.start
        )
        source = make_source_table(
            measured,
            ids=np.asarray(preliminary_source["id"], dtype=np.int64),
            wcs=astrometry.wcs,
            njy_per_electron=zero_point.njy_per_count,
            radii=list(self.config.aperture_radii),
            extra={
                **make_match_columns(measured.psf.x, measured.psf.y, astrometry, references, zero_point),
                "calib_psf_used": flags["psf_star"],
                "calib_psf_reserved": flags["psf_reserved"],
                "streak_flag": flags["streak"],
                "image_flag": np.full(len(preliminary_source), bool(names_beyond(measures))),
                "visit": np.int64(image.obs_info.visit_id or 0),
                "detector": np.int32(image.detector.id),
                "band": image.band,
                "physical_filter": image.physical_filter,
            },
        )
        stats = summarize(image, measured, projection, astrometry, zero_point)
        n_references = 0 if references is None else len(references)
        summary = make_summary_table(image, measured, stats, astrometry, zero_point, n_references, measures)
        self._report(summary, measures)
        visit_image = make_visit_image(image, projection, measured, zero_point, stats)
        return pipe_base.Struct(visit_image=visit_image, source=source, detector_summary=summary)

    def _judge(
        self,
        image: VisitImage,
        measured: SourceMeasurements,
        flags: dict[str, BoolArray],
        astrometry: AstrometrySolution,
        zero_point: ZeroPoint,
        references: astropy.table.Table | None,
    ) -> list[Measure]:
        """Compare the quality measures of an image with their limits."""
        values = {
            **measure_pixels(image),
            "streak_fraction": float(np.mean(flags["streak"])),
            "doubled_fraction": self._measure_doubling(measured, flags["streak"]),
            **measure_psf(measured, flags["psf_star"], flags["psf_reserved"], image.summary_stats.skyNoise),
            "astrometric_scatter": astrometry.scatter / astrometry.pixel_scale,
            "zero_point_scatter": zero_point.scatter,
            "zero_point_error": zero_point.error,
            "zero_point_offset": abs(zero_point.offset),
            "zero_point_trend": zero_point.trend,
            **measure_linearity(image, measured, zero_point.losses),
        }
        if references is not None:
            values["matched_references"] = float(astrometry.sources.size)
        return judge(self.config.quality, values)

    def _measure_doubling(self, measured: SourceMeasurements, streak: BoolArray) -> float:
        """Return the share of sources of the sky with another one at the same offset."""
        flux, fwhm = measured.psf.flux, measured.model.fwhm
        bright = np.nonzero((flux > 10.0 * measured.psf.pixel_err) & ~streak)[0]
        bright = bright[np.argsort(-flux[bright], kind="stable")]
        positions = np.column_stack([measured.psf.x, measured.psf.y])[bright]
        return measure_doubling(positions, 15.0 * fwhm, 0.5 * fwhm)

    def _match(
        self,
        wcs: astropy.wcs.WCS,
        measured: SourceMeasurements,
        references: astropy.table.Table | None,
        shape: tuple[int, int],
    ) -> AstrometrySolution:
        if references is None:
            solution = AstrometrySolution(wcs, failure="no reference catalog here")
        else:
            flags = measured.flags
            trusted = ~(flags["centroid_flag"] | flags["psfFlux_flag"] | flags["pixelFlags_crCenter"])
            most = self.config.astrometry_max_offset / pixel_scale(wcs)
            solution = refine_wcs(
                wcs,
                measured.psf.x,
                measured.psf.y,
                np.where(trusted, measured.psf.flux, np.nan),
                np.asarray(references["ra"]),
                np.asarray(references["dec"]),
                np.asarray(references["flux"]),
                shape,
                # A search as narrow as one match could not tell stars from chance.
                max_offset=most if self.config.do_astrometry else 10.0 * self.config.match_radius,
                blind=self.config.do_astrometry and self.config.astrometry_blind,
                max_sip_degree=self.config.astrometry_max_sip_degree,
                match_radius=self.config.match_radius,
                errors=measured.psf.x_err,
                min_matches=self.config.astrometry_min_matches,
            )
        if references is not None and not self.config.do_astrometry and not solution.failure:
            off = solution.offset / solution.pixel_scale
            if off <= _MOST_OFF:
                return solution.about(wcs, measured.psf.x, measured.psf.y, references)
            solution = AstrometrySolution(
                wcs, failure=f"it is {off:.1f} pixels off, and do_astrometry is False"
            )
        if solution.failure:
            self.log.warning("The projection is not refined: %s.", solution.failure)
        return solution

    def _calibrate_fluxes(
        self,
        measured: SourceMeasurements,
        references: astropy.table.Table | None,
        matches: AstrometrySolution,
    ) -> ZeroPoint:
        """Return the zero point, with the indices of its sources."""
        stars = measured.usable(self.config.calibration_min_snr)[matches.sources]
        sources, partners = matches.sources[stars], matches.references[stars]
        zero_point = ZeroPoint()
        if references is not None and sources.size:
            # The light of a neighbor, detected or not, would count as the star's.
            alone = isolated_references(matches.wcs, references, partners, 2.0 * measured.model.fwhm)
            alone &= measured.psf.blendedness[sources] < 0.02
            if np.count_nonzero(alone) >= max(self.config.photometry_min_stars, _ENOUGH_ALONE):
                sources, partners = sources[alone], partners[alone]
            flux = measured.inst_flux[sources]
            fluxes = flux, measured.inst_flux_err[sources], np.asarray(references["flux"])[partners]
            zero_point = fit_zero_point(
                *fluxes, reserved=choose_reserved(flux), min_stars=self.config.photometry_min_stars
            )
            positions = np.column_stack([measured.psf.x, measured.psf.y])[sources]
            trend = measure_trend(positions, *fluxes, measured.psf.residual.shape)
            losses = measure_losses(sources, *fluxes)
            zero_point = dataclasses.replace(zero_point, trend=trend, losses=losses)
        if not math.isfinite(zero_point.magnitude):
            self.log.warning(
                "No zero point: %d matched stars have a signal-to-noise ratio of %g; %d are needed.",
                sources.size,
                self.config.calibration_min_snr,
                self.config.photometry_min_stars,
            )
        return dataclasses.replace(
            zero_point, used=sources[zero_point.used], reserved=sources[zero_point.reserved]
        )

    def _report(self, summary: astropy.table.Table, measures: Sequence[Measure]) -> None:
        row = summary[0]
        for name in ("nSource", "nRefMatched", "nZeroPoint"):
            self.metadata[name] = int(row[name])
        for name in ("zeroPoint", "zeroPointScatter", "astromScatter", "astromOffset", "apertureCorrection"):
            # Metadata can't contain NaN in JSON; absent values were not determined.
            if math.isfinite(row[name]):
                self.metadata[name] = float(row[name])
        for measure in measures:
            if math.isfinite(measure.value):
                self.metadata[f"quality_{measure.name}"] = measure.value
            if not measure.ok:
                self.log.warning("The image is flagged: %s.", measure)
        self.metadata["imageFlag"] = bool(row["image_flag"])
        self.metadata["imageFlagReasons"] = str(row["image_flag_reasons"])
        self.metadata["calibrated"] = math.isfinite(row["zeroPoint"])
        self.log.info(
            '%d sources, %d matched; zero point %.3f +- %.3f mag (%d stars); astrometric scatter %.3f".',
            row["nSource"],
            row["nRefMatched"],
            row["zeroPoint"],
            row["zeroPointErr"],
            row["nZeroPoint"],
            row["astromScatter"],
        )


def _read_flags(peaks: astropy.table.Table) -> dict[str, BoolArray]:
    """Return the flags of detected peaks; earlier releases did not reserve PSF stars."""
    none = np.zeros(len(peaks), dtype=bool)
    return {
        name: np.asarray(peaks[name] if name in peaks.colnames else none, dtype=bool)
        for name in ("psf_star", "psf_reserved", "streak")
    }
