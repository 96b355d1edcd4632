"""process_ccd on simulated frames, compared with the truth they were made from."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import astropy.table
import astropy.units as u
import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial
from lsst.daf.butler import Butler
from lsst.images import VisitImage

from spark_butler.demo.simulation import SimulatedData, read_table
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.obs.visits import define_visits
from spark_butler.tasks.frames import plane_union
from spark_butler.tasks.isr import CalibrationMissingError
from tests.tasks.processed_night import ProcessedNight

pytestmark = pytest.mark.pipeline


@dataclasses.dataclass
class Matched:
    """One detector's truth and measurements, matched."""

    truth: astropy.table.Table
    source: astropy.table.Table
    image: VisitImage
    summary: astropy.table.Row
    index: np.ndarray
    """For each true source the nearest measured one."""
    distance: np.ndarray
    """Its distance in pixels."""
    snr: np.ndarray
    """Signal-to-noise ratio of the true sources, as point sources in sky noise."""
    fair: np.ndarray
    """True stars away from edges, masked pixels and brighter neighbors."""


@pytest.fixture(scope="module")
def matched(processed: ProcessedNight) -> list[Matched]:
    butler = processed.butler
    truth = read_table(processed.simulated.truth)
    results = []
    for ref in butler.query_datasets("source", instrument="SimCam"):
        data_id = {key: ref.dataId[key] for key in ("instrument", "visit", "detector")}
        here = (truth["visit"] == data_id["visit"]) & (truth["detector"] == data_id["detector"])
        results.append(
            _match(
                truth[here],
                butler.get(ref),
                butler.get("visit_image", data_id),
                butler.get("detector_summary", data_id)[0],
            )
        )
    return results


def _match(
    truth: astropy.table.Table, source: astropy.table.Table, image: VisitImage, summary: astropy.table.Row
) -> Matched:
    positions = np.column_stack([truth["x"], truth["y"]])
    distance, index = scipy.spatial.cKDTree(np.column_stack([source["x"], source["y"]])).query(positions)
    # The light of the simulated, not quite Gaussian PSF that a Gaussian filter makes use of.
    snr = 0.8 * np.asarray(truth["flux"]) / (summary["skyNoise"] * np.sqrt(4.0 * np.pi) * summary["psfSigma"])
    ny, nx = image.image.array.shape
    inside = (positions > 15).all(axis=1) & (positions < np.array([nx - 16, ny - 16])).all(axis=1)
    spoiled = scipy.ndimage.maximum_filter(plane_union(image.mask, "BAD", "COSMIC_RAY", "SATURATED"), 5)
    fair = inside & np.asarray(truth["is_star"])
    rounded = np.rint(positions[fair]).astype(int)
    fair[fair] = ~spoiled[rounded[:, 1], rounded[:, 0]]
    for first, second in scipy.spatial.cKDTree(positions).query_pairs(1.2 * summary["psfFwhm"]):
        fair[first if truth["flux"][first] < truth["flux"][second] else second] = False
    return Matched(truth, source, image, summary, index, distance, snr, fair)


def collect(matched: list[Matched], low: float, high: float) -> dict[str, np.ndarray]:
    """Residuals of the fair stars with a signal-to-noise ratio between the limits."""
    parts: dict[str, list[np.ndarray]] = {"dx": [], "dy": [], "pull": [], "dmag": [], "separation": []}
    for one in matched:
        chosen = one.fair & (one.snr > low) & (one.snr <= high) & (one.distance < 2.0)
        truth, source = one.truth[chosen], one.source[one.index[chosen]]
        unsaturated = ~np.asarray(source["pixelFlags_saturated"])
        truth, source = truth[unsaturated], source[unsaturated]
        flux = 10.0 ** (-0.4 * (np.asarray(truth["mag"]) - 31.4))
        parts["dx"].append(np.asarray(source["x"]) - np.asarray(truth["x"]))
        parts["dy"].append(np.asarray(source["y"]) - np.asarray(truth["y"]))
        parts["pull"].append((np.asarray(source["psfFlux"]) - flux) / np.asarray(source["psfFluxErr"]))
        parts["dmag"].append(-2.5 * np.log10(np.asarray(source["psfFlux"]) / flux))
        cosine = np.cos(np.radians(np.asarray(truth["dec"])))
        d_ra = (np.asarray(source["coord_ra"]) - np.asarray(truth["ra"])) * cosine
        d_dec = np.asarray(source["coord_dec"]) - np.asarray(truth["dec"])
        parts["separation"].append(3600.0 * np.hypot(d_ra, d_dec))
    return {name: np.concatenate(values) for name, values in parts.items()}


def robust_std(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def test_everything_is_made_for_every_detector(processed: ProcessedNight) -> None:
    butler = processed.butler
    for name in ("visit_image", "source", "detector_summary", "preliminary_source", "post_isr_image"):
        assert len(butler.query_datasets(name, collections=processed.output)) == 4, name
    assert len(butler.query_datasets("visit_summary", collections=processed.output)) == 2


def test_stars_are_complete(matched: list[Matched]) -> None:
    found = np.concatenate([one.distance[one.fair & (one.snr > 10.0)] < 2.0 for one in matched])
    assert found.size > 150
    assert found.mean() >= 0.95


def test_few_detections_are_false(matched: list[Matched]) -> None:
    spurious, total = 0, 0
    for one in matched:
        tree = scipy.spatial.cKDTree(np.column_stack([one.truth["x"], one.truth["y"]]))
        inner = ~np.asarray(one.source["pixelFlags_edge"])
        nearest = tree.query(np.column_stack([one.source["x"], one.source["y"]]))[0]
        spurious += int(np.count_nonzero((nearest > 3.0) & inner))
        total += int(np.count_nonzero(inner))
    assert spurious / total < 0.05


def test_positions_of_bright_stars(matched: list[Matched]) -> None:
    bright = collect(matched, 100.0, np.inf)
    assert len(bright["dx"]) > 40
    assert robust_std(bright["dx"]) < 0.1
    assert robust_std(bright["dy"]) < 0.1
    assert abs(np.median(bright["dx"])) < 0.02
    assert abs(np.median(bright["dy"])) < 0.02


def test_the_projection_is_refined(matched: list[Matched]) -> None:
    assert np.median(collect(matched, 50.0, np.inf)["separation"]) < 0.03
    for one in matched:
        assert one.summary["nRefMatched"] > 10
        assert one.summary["astromScatter"] < 0.1


def test_zero_points_and_fluxes(matched: list[Matched]) -> None:
    for one in matched:
        truth = float(np.asarray(one.truth["zero_point"])[0])
        assert one.summary["zeroPoint"] == pytest.approx(truth, abs=0.02)
        assert one.summary["zeroPointErr"] < 0.01
    bright = collect(matched, 100.0, np.inf)
    assert abs(np.median(bright["dmag"])) < 0.01
    assert robust_std(bright["dmag"]) < 0.03
    middle = collect(matched, 20.0, 100.0)
    assert 0.5 < np.median(np.abs(middle["pull"])) < 2.0


def test_cosmic_rays_are_masked(processed: ProcessedNight, matched: list[Matched]) -> None:
    hits = read_table(processed.simulated.cosmic_rays)
    masked, near_ray = [], 0
    for one in matched:
        visit, detector = int(one.summary["visit"]), int(one.summary["detector"])
        here = hits[(hits["visit"] == visit) & (hits["detector"] == detector)]
        strong = here[here["electrons"] > 10.0 * one.summary["skyNoise"]]
        masked.append(one.image.mask.get("COSMIC_RAY")[strong["y"], strong["x"]])
        rays = np.column_stack([here["x"], here["y"]])
        from_truth = scipy.spatial.cKDTree(np.column_stack([one.truth["x"], one.truth["y"]]))
        positions = np.column_stack([one.source["x"], one.source["y"]])
        on_ray = scipy.spatial.cKDTree(rays).query(positions)[0] < 2.0
        near_ray += int(np.count_nonzero(on_ray & (from_truth.query(positions)[0] > 3.0)))
    assert np.concatenate(masked).mean() > 0.9
    assert near_ray <= 4


def test_defects_are_masked_and_flagged(processed: ProcessedNight) -> None:
    image = processed.butler.get(
        "visit_image", instrument="SimCam", visit=processed.simulated.visits[0], detector=0
    )
    bad = image.mask.get("BAD")
    # The first defect of the simulated camera's description is a whole column.
    columns = np.nonzero(bad.all(axis=0))[0]
    assert columns.size == 1
    assert 0.0 < bad.mean() < 0.02


def test_the_image_is_calibrated_and_complete(matched: list[Matched]) -> None:
    for one in matched:
        image = one.image
        assert image.unit == u.nJy
        assert image.photometric_scaling is not None
        assert image.summary_stats.zeroPoint == one.summary["zeroPoint"]
        assert image.psf.kernel_bbox.x.size % 2 == 1
        assert image.backgrounds.subtracted is not None
        assert set(image.mask.schema.names) >= {"BAD", "SATURATED", "COSMIC_RAY", "DETECTED"}
        sky = image.image.array[~plane_union(image.mask, "BAD", "COSMIC_RAY", "SATURATED", "DETECTED")]
        variance = image.variance.array[~plane_union(image.mask, "BAD", "DETECTED")]
        assert abs(np.median(sky)) < 0.1 * robust_std(sky)
        assert robust_std(sky) == pytest.approx(np.sqrt(np.median(variance)), rel=0.05)
        center = image.sky_projection.pixel_to_sky(x=191.5, y=191.5)
        assert center.ra.deg == pytest.approx(image.summary_stats.ra, abs=1e-6)


def test_the_catalog_keeps_units_and_unique_identifiers(matched: list[Matched]) -> None:
    identifiers = np.concatenate([np.asarray(one.source["sourceId"]) for one in matched])
    assert len(set(identifiers.tolist())) == len(identifiers)
    source = matched[0].source
    for name, unit in (("x", u.pix), ("coord_ra", u.deg), ("psfFlux", u.nJy), ("instFlux", u.electron)):
        assert source[name].unit == unit
    assert (np.asarray(source["visit"]) == matched[0].summary["visit"]).all()
    assert 0 < np.count_nonzero(source["calib_photometry_used"]) <= len(source)


def test_the_catalog_has_residuals_of_matched_references(matched: list[Matched]) -> None:
    for one in matched:
        source = one.source
        matches = np.asarray(source["refId"]) >= 0
        for name, unit in (("refFlux", u.nJy), ("refOffset_ra", u.arcsec), ("refOffset_dec", u.arcsec)):
            assert source[name].unit == unit
            assert np.isfinite(np.asarray(source[name])[matches]).all()
            assert np.isnan(np.asarray(source[name])[~matches]).all()
        bright = matches & (np.asarray(source["snr"]) > 100.0)
        # The bounds are those of the catalog as a whole, see docs/process_ccd.md.
        assert np.abs(np.median(source["refOffset_ra"][bright])) < 0.02
        assert np.median(source["psfFlux"][bright] / source["refFlux"][bright]) == pytest.approx(
            1.0, abs=0.02
        )
        stars = np.asarray(source["calib_psf_used"])
        assert np.median(source["ixx"][stars] / source["ixxPSF"][stars]) == pytest.approx(1.0, abs=0.05)


def test_the_visit_summary_has_one_row_for_each_detector(processed: ProcessedNight) -> None:
    for visit in processed.simulated.visits:
        summary = processed.butler.get("visit_summary", instrument="SimCam", visit=visit)
        assert np.asarray(summary["detector"]).tolist() == [0, 1]
        assert np.isfinite(summary["zeroPoint"]).all()
        assert np.asarray(summary["raCorners"]).shape == (2, 4)


def test_without_references_fluxes_stay_instrumental(
    sim_night: tuple[SimulatedData, str], process: Callable[..., str], pipelines: Path
) -> None:
    simulated, repo = sim_night
    where = f"instrument='SimCam' AND visit={simulated.visits[0]} AND detector=0"
    output = process(
        repo, pipelines / "process_ccd.yaml", ["SimCam/defaults"], "u/test/no_refcat", where=where
    )
    butler = Butler.from_config(repo, collections=output)
    data_id = {"instrument": "SimCam", "visit": simulated.visits[0], "detector": 0}
    source, image = butler.get("source", data_id), butler.get("visit_image", data_id)
    assert np.isnan(source["psfFlux"]).all()
    assert np.isfinite(source["instFlux"]).all()
    assert image.unit == u.electron
    assert image.photometric_scaling is None
    assert not butler.get("calibrate_metadata", data_id)["calibrate"]["calibrated"]


def test_a_missing_calibration_names_what_is_missing(
    sim_night: tuple[SimulatedData, str], process: Callable[..., str], pipelines: Path, tmp_path: Path
) -> None:
    simulated, _ = sim_night
    repo = str(tmp_path / "repo")
    _ingest_without_calibrations(repo, simulated)
    with pytest.raises(CalibrationMissingError, match=r"No bias for .*'detector': 0.* set do_bias=False"):
        process(repo, f"{pipelines / 'process_ccd.yaml'}#isr", ["SimCam/defaults"], "u/test/isr")
    process(
        repo,
        f"{pipelines / 'process_ccd.yaml'}#isr",
        ["SimCam/defaults"],
        "u/test/no_calibs",
        config={("isr", name): False for name in ("do_bias", "do_dark", "do_flat")},
    )
    butler = Butler.from_config(repo, collections="u/test/no_calibs")
    assert len(butler.query_datasets("post_isr_image")) == 2


def test_a_truncated_raw_fails_with_its_name_and_reason(
    sim_night: tuple[SimulatedData, str], process: Callable[..., str], pipelines: Path, tmp_path: Path
) -> None:
    simulated, _ = sim_night
    repo = str(tmp_path / "repo")
    files = _ingest_without_calibrations(repo, simulated)
    with files[0].open("r+b") as stream:
        stream.truncate(100_000)
    with pytest.raises(Exception, match=files[0].name) as caught:
        process(repo, f"{pipelines / 'process_ccd.yaml'}#isr", ["SimCam/defaults"], "u/test/truncated")
    assert "100000" in str(caught.value)


def _ingest_without_calibrations(repo: str, simulated: SimulatedData) -> list[Path]:
    """Make a repository with copies of the first visit's raw frames alone."""
    raw = Path(repo).parent / "raw"
    raw.mkdir()
    pattern = f"*{simulated.visits[0]}*.fits"
    files = [Path(shutil.copy(path, raw)) for path in sorted(simulated.raw_dir.glob(pattern))]
    Butler.makeRepo(repo)
    butler = Butler.from_config(repo, writeable=True)
    register_instrument(butler, simulated.camera)
    ingest_raws(butler, files, transfer="direct")
    define_visits(butler, "SimCam")
    return files
