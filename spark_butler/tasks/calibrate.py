"""Measure the sources of one image and calibrate it against a reference catalog."""

from __future__ import annotations

__all__ = ("CalibrateConfig", "CalibrateConnections", "CalibrateTask", "ReferenceColumnError")

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import astropy.table
import astropy.units as u
import astropy.wcs
import lsst.pipe.base as pipe_base
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import numpy.typing as npt
from lsst.daf.butler import DeferredDatasetHandle
from lsst.images import Image, ObservationSummaryStats, SkyProjection, VisitImage
from lsst.images.fields import ChebyshevField
from lsst.pex.config import Field, ListField, RangeField

from ..errors import UserError
from .astrometry import AstrometrySolution, refine_wcs
from .photometry import ZeroPoint, fit_zero_point
from .sources import SourceMeasurements, make_source_table, measure_sources

_DIMENSIONS = ("instrument", "visit", "detector")


class ReferenceColumnError(UserError, KeyError):
    """A reference catalog lacks a column."""

    def __str__(self) -> str:
        return str(self.args[0])


class CalibrateConnections(pipe_base.PipelineTaskConnections, dimensions=_DIMENSIONS):
    preliminary_visit_image = cT.Input(
        doc="Sky-subtracted image in electrons with PSF and first projection.",
        name="preliminary_visit_image",
        storageClass="VisitImage",
        dimensions=_DIMENSIONS,
    )
    preliminary_source = cT.Input(
        doc="Detected peaks.",
        name="preliminary_source",
        storageClass="ArrowAstropy",
        dimensions=_DIMENSIONS,
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
    source = cT.Output(
        doc="Catalog of sources.",
        name="source",
        storageClass="ArrowAstropy",
        dimensions=_DIMENSIONS,
    )
    detector_summary = cT.Output(
        doc="One row on the quality and calibration of this image.",
        name="detector_summary",
        storageClass="ArrowAstropy",
        dimensions=_DIMENSIONS,
    )


class CalibrateConfig(pipe_base.PipelineTaskConfig, pipelineConnections=CalibrateConnections):
    aperture_radii = ListField[float](doc="Radii of the apertures in pixels.", default=[3.0, 6.0, 9.0, 12.0])
    correction_radius = RangeField(
        dtype=float,
        doc="Radius, in FWHM of the PSF, of the aperture that PSF fluxes are corrected to.",
        default=3.0,
        min=0.5,
    )
    correction_min_snr = RangeField(
        dtype=float,
        doc="Least signal-to-noise ratio of stars for the aperture correction.",
        default=50.0,
        min=1.0,
    )
    calibration_min_snr = RangeField(
        dtype=float, doc="Least signal-to-noise ratio of stars for the zero point.", default=20.0, min=1.0
    )
    photometry_min_stars = RangeField(
        dtype=int, doc="Least number of stars for a zero point.", default=3, min=1
    )
    do_astrometry = Field[bool](
        doc="Refine the projection? If not, sources are matched to references with it as it is.", default=True
    )
    astrometry_max_offset = RangeField(
        dtype=float,
        doc="Largest error of the pointing that is looked for, in arcseconds.",
        default=20.0,
        min=0.0,
    )
    match_radius = RangeField(
        dtype=float,
        doc="Largest distance of a source from its reference, in pixels, once the offset is known.",
        default=2.0,
        min=0.1,
    )
    astrometry_min_matches = RangeField(dtype=int, doc="Least number of matches.", default=5, min=3)
    reference_flux = Field[str](
        doc="Column of the reference fluxes; {band} stands for the band of the image.", default="{band}_flux"
    )


class CalibrateTask(pipe_base.PipelineTask):
    """Measure sources, refine the projection, and find the photometric zero point.

    Without references, or without a convincing match to them, fluxes stay instrumental: calibrated ones are
    NaN, the image stays in electrons, and the metadata and a warning say so.
    """

    ConfigClass: ClassVar[type[pipe_base.PipelineTaskConfig]] = CalibrateConfig
    _DefaultName: ClassVar[str] = "calibrate"
    config: CalibrateConfig

    def runQuantum(
        self,
        butlerQC: pipe_base.QuantumContext,
        inputRefs: pipe_base.InputQuantizedConnection,
        outputRefs: pipe_base.OutputQuantizedConnection,
    ) -> None:
        inputs = butlerQC.get(inputRefs)
        outputs = self.run(**inputs)
        butlerQC.put(outputs, outputRefs)

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
            Detected peaks: ``id``, ``x``, ``y``, ``psf_star``.
        ref_cat
            Shards of the reference catalog that overlap the image.

        Returns
        -------
        result
            ``visit_image`` (`lsst.images.VisitImage`), ``source`` and ``detector_summary``
            (`astropy.table.Table`).
        """
        image = preliminary_visit_image
        measured = measure_sources(
            image,
            np.asarray(preliminary_source["x"], dtype=np.float64),
            np.asarray(preliminary_source["y"], dtype=np.float64),
            radii=list(self.config.aperture_radii),
            correction_radius=self.config.correction_radius,
            correction_min_snr=self.config.correction_min_snr,
        )
        if not measured.n_aperture_correction and len(preliminary_source):
            self.log.warning(
                "Too few bright, isolated stars for an aperture correction: PSF fluxes stay as they are."
            )
        references = self._load_references(ref_cat, image.band)
        first_wcs = image.fits_wcs
        assert first_wcs is not None, "A visit image has a projection."
        astrometry = self._match(first_wcs, measured, references, image.bbox.shape)
        zero_point, used = self._calibrate_fluxes(measured, references, astrometry)
        projection = SkyProjection.from_fits_wcs(
            astrometry.wcs, image.sky_projection.pixel_frame, x0=image.bbox.x.start, y0=image.bbox.y.start
        )
        ra, dec = astrometry.wcs.pixel_to_world_values(measured.psf.x, measured.psf.y)
        reference_id = np.full(len(preliminary_source), -1, dtype=np.int64)
        if references is not None:
            reference_id[astrometry.sources] = np.asarray(references["id"], dtype=np.int64)[
                astrometry.references
            ]
        source = make_source_table(
            measured,
            ids=np.asarray(preliminary_source["id"], dtype=np.int64),
            ra_deg=np.asarray(ra),
            dec_deg=np.asarray(dec),
            njy_per_electron=zero_point.njy_per_count,
            radii=list(self.config.aperture_radii),
            extra={
                "refId": reference_id,
                "calib_psf_used": np.asarray(preliminary_source["psf_star"]),
                "calib_astrometry_used": _flagged(astrometry.sources, len(preliminary_source)),
                "calib_photometry_used": _flagged(used, len(preliminary_source)),
                "visit": np.int64(image.obs_info.visit_id or 0),
                "detector": np.int32(image.detector.id),
            },
        )
        stats = self._summarize(image, measured, projection, astrometry, zero_point)
        summary = self._make_summary_table(image, measured, stats, astrometry, zero_point, references)
        self._report(summary)
        visit_image = self._make_visit_image(image, projection, measured, zero_point, stats)
        return pipe_base.Struct(visit_image=visit_image, source=source, detector_summary=summary)

    def _load_references(
        self, handles: Sequence[DeferredDatasetHandle | pipe_base.InMemoryDatasetHandle], band: str
    ) -> astropy.table.Table | None:
        """Return ``id``, ``ra`` and ``dec`` [deg] and ``flux`` [nJy] of all shards together."""
        flux = self.config.reference_flux.format(band=band)
        shards = []
        for handle in handles:
            shard = handle.get()
            if missing := [
                name for name in ("id", "coord_ra", "coord_dec", flux) if name not in shard.colnames
            ]:
                raise ReferenceColumnError(
                    f"The reference catalog {getattr(handle, 'ref', handle)} has no column "
                    f"{', '.join(missing)}; it has {', '.join(shard.colnames)}."
                )
            shards.append(
                {
                    "id": np.asarray(shard["id"]),
                    "ra": _degrees(shard["coord_ra"]),
                    "dec": _degrees(shard["coord_dec"]),
                    "flux": np.asarray(shard[flux], dtype=np.float64),
                }
            )
        if not shards:
            return None
        return astropy.table.Table(
            {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
        )

    def _match(
        self,
        wcs: astropy.wcs.WCS,
        measured: SourceMeasurements,
        references: astropy.table.Table | None,
        shape: tuple[int, int],
    ) -> AstrometrySolution:
        none = np.zeros(0, dtype=np.intp)
        if references is None:
            solution = AstrometrySolution(wcs, none, none, math.nan, math.nan, "no reference catalog here")
        else:
            scale = math.sqrt(abs(float(np.linalg.det(wcs.pixel_scale_matrix)))) * 3600.0
            flags = measured.flags
            trusted = ~(flags["centroid_flag"] | flags["psfFlux_flag"] | flags["pixelFlags_crCenter"])
            solution = refine_wcs(
                wcs,
                measured.psf.x,
                measured.psf.y,
                np.where(trusted, measured.psf.flux, np.nan),
                np.asarray(references["ra"]),
                np.asarray(references["dec"]),
                np.asarray(references["flux"]),
                shape,
                max_offset=self.config.astrometry_max_offset / scale if self.config.do_astrometry else 3.0,
                match_radius=self.config.match_radius,
                min_matches=self.config.astrometry_min_matches,
            )
        if solution.failure:
            self.log.warning("The projection is not refined: %s.", solution.failure)
        elif not self.config.do_astrometry:
            return AstrometrySolution(wcs, solution.sources, solution.references, 0.0, solution.scatter)
        return solution

    def _calibrate_fluxes(
        self,
        measured: SourceMeasurements,
        references: astropy.table.Table | None,
        matches: AstrometrySolution,
    ) -> tuple[ZeroPoint, npt.NDArray[np.intp]]:
        """Return the zero point and the indices of the sources that it comes from."""
        stars = measured.usable(self.config.calibration_min_snr)[matches.sources]
        sources, partners = matches.sources[stars], matches.references[stars]
        flux = np.asarray(references["flux"])[partners] if references is not None else np.zeros(0)
        zero_point = fit_zero_point(
            measured.inst_flux[sources],
            measured.inst_flux_err[sources],
            flux,
            min_stars=self.config.photometry_min_stars,
        )
        if not math.isfinite(zero_point.magnitude):
            self.log.warning(
                "No zero point: %d matched stars with a signal-to-noise ratio of %g, %d needed.",
                sources.size,
                self.config.calibration_min_snr,
                self.config.photometry_min_stars,
            )
        return zero_point, sources[zero_point.used]

    def _summarize(
        self,
        image: VisitImage,
        measured: SourceMeasurements,
        projection: SkyProjection[Any],
        astrometry: AstrometrySolution,
        zero_point: ZeroPoint,
    ) -> ObservationSummaryStats:
        bbox = image.bbox
        x_edges, y_edges = (bbox.x.start - 0.5, bbox.x.stop - 0.5), (bbox.y.start - 0.5, bbox.y.stop - 0.5)
        corners = projection.pixel_to_sky(
            x=np.array([x_edges[0], x_edges[1], x_edges[1], x_edges[0]]),
            y=np.array([y_edges[0], y_edges[0], y_edges[1], y_edges[1]]),
        )
        center = projection.pixel_to_sky(x=0.5 * sum(x_edges), y=0.5 * sum(y_edges))
        # Noise of the PSF flux of a source that is as faint as the sky allows.
        limit = 5.0 * image.summary_stats.skyNoise * math.sqrt(image.summary_stats.psfArea)
        return image.summary_stats.model_copy(
            update={
                "ra": float(center.ra.deg),
                "dec": float(center.dec.deg),
                "raCorners": tuple(float(value) for value in corners.ra.deg),
                "decCorners": tuple(float(value) for value in corners.dec.deg),
                "pixelScale": math.sqrt(abs(float(np.linalg.det(astrometry.wcs.pixel_scale_matrix))))
                * 3600.0,
                "zeroPoint": zero_point.magnitude,
                "magLim": zero_point.magnitude - 2.5 * math.log10(limit * measured.aperture_correction),
                "astromOffsetMean": astrometry.offset,
                "astromOffsetStd": astrometry.scatter,
            }
        )

    def _make_summary_table(
        self,
        image: VisitImage,
        measured: SourceMeasurements,
        stats: ObservationSummaryStats,
        astrometry: AstrometrySolution,
        zero_point: ZeroPoint,
        references: astropy.table.Table | None,
    ) -> astropy.table.Table:
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
            "nRef": (np.int32(0 if references is None else len(references)), None),
            "nSource": (np.int32(len(measured.psf.x)), None),
        }
        table = astropy.table.Table()
        for name, (value, unit) in columns.items():
            table[name] = astropy.table.Column([value], unit=unit)
        return table

    def _report(self, summary: astropy.table.Table) -> None:
        row = summary[0]
        for name in ("nSource", "nRefMatched", "nZeroPoint"):
            self.metadata[name] = int(row[name])
        for name in ("zeroPoint", "zeroPointScatter", "astromScatter", "astromOffset", "apertureCorrection"):
            # Metadata can't hold NaN in JSON; what is absent was not determined.
            if math.isfinite(row[name]):
                self.metadata[name] = float(row[name])
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

    def _make_visit_image(
        self,
        image: VisitImage,
        projection: SkyProjection[Any],
        measured: SourceMeasurements,
        zero_point: ZeroPoint,
        stats: ObservationSummaryStats,
    ) -> VisitImage:
        calibrated = math.isfinite(zero_point.magnitude)
        factor = zero_point.njy_per_count if calibrated else 1.0
        unit = u.nJy if calibrated else u.electron
        scaling = (
            ChebyshevField(image.bbox, np.array([[factor]]), unit=u.nJy / u.electron) if calibrated else None
        )
        return VisitImage(
            Image((image.image.array * factor).astype(np.float32), bbox=image.bbox, unit=unit),
            mask=image.mask.copy(),
            variance=Image(
                (image.variance.array * factor**2).astype(np.float32), bbox=image.bbox, unit=unit**2
            ),
            sky_projection=projection,
            obs_info=image.obs_info,
            summary_stats=stats,
            photometric_scaling=scaling,
            psf=image.psf,
            detector=image.detector,
            aperture_corrections={
                "psfFlux": _stored_correction(image, measured),
            },
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


def _flagged(index: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.bool_]:
    flags = np.zeros(count, dtype=bool)
    flags[index] = True
    return flags


def _degrees(column: Any) -> npt.NDArray[np.float64]:
    """Convert an angle to degrees; without a unit it is in radians, as in all Rubin reference catalogs."""
    unit = getattr(column, "unit", None) or u.rad
    return np.asarray((np.asarray(column, dtype=np.float64) * unit).to_value(u.deg))
