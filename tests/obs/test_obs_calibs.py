from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.time
import numpy as np
import pytest
import yaml
from lsst.daf.butler import Butler, DatasetType, Timespan
from lsst.images import Image
from lsst.pipe.base import Instrument
from lsst.pipe.base.pipeline_graph import IncompatibleDatasetTypeError, PipelineGraph

from spark_butler.demo.simulation import SimulatedData
from spark_butler.demo.simulation._readout import Electronics
from spark_butler.errors import RepositoryError, UserError
from spark_butler.obs import CameraDescription
from spark_butler.obs.calibs import ingest_calibs, parse_validity
from spark_butler.obs.camera.defects import to_mask
from spark_butler.obs.masters import combine, combine_with_variance, normalize
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.tasks.cp_combine import CpBiasCombineTask
from spark_butler.tasks.isr import IsrTask


def _truth(night: SimulatedData, detector: int) -> Electronics:
    camera = CameraDescription.from_yaml(night.camera)
    return Electronics.make(camera, camera.get_detector(detector), seed=3)


def _master(butler: Butler, kind: str, **data_id: Any) -> np.ndarray:
    ref = butler.find_dataset(
        kind, instrument="SimCam", collections="SimCam/defaults", timespan=Timespan(None, None), **data_id
    )
    assert ref is not None
    return np.asarray(butler.get(ref).image.array)


@pytest.mark.parametrize("detector", [0, 1])
def test_masters_are_close_to_the_truth(ingested: Butler, night: SimulatedData, detector: int) -> None:
    camera = CameraDescription.from_yaml(night.camera).get_detector(detector)
    truth = _truth(night, detector)
    good = np.ones((camera.ny, camera.nx), dtype=bool)
    for defect in camera.defects:
        good[defect.slices] = False
    gain = np.empty_like(truth.dark_rate)
    read_noise = np.empty_like(gain)
    for amplifier in camera.amplifiers:
        gain[amplifier.section.slices] = amplifier.gain
        read_noise[amplifier.section.slices] = amplifier.read_noise / amplifier.gain
    bias = _master(ingested, "bias", detector=detector)
    difference = (bias - truth.bias_structure)[good]
    # Five frames, and the overscan's own mean.
    assert abs(np.mean(difference)) < 0.1
    assert np.std(difference) < 1.2 * np.mean(read_noise) / np.sqrt(5)
    dark = _master(ingested, "dark", detector=detector)
    difference = (dark - truth.dark_rate / gain)[good]
    assert abs(np.median(difference)) < 0.01
    assert 1.4826 * np.median(np.abs(difference)) < 0.1
    flat = _master(ingested, "flat", detector=detector, physical_filter="sim_r")
    relative = truth.throughput / np.median(truth.throughput)
    ratio = (flat / np.where(good, relative, 1.0))[good]
    assert abs(np.median(flat) - 1.0) < 1e-4
    # 30,000 electrons a frame, five frames: photon noise of 0.3 per cent.
    assert abs(np.mean(ratio) - 1.0) < 1e-3
    assert np.std(ratio) < 0.004
    assert np.all(flat[camera.defects[0].slices] < 0.01)


def test_masters_have_their_dimensions_units_and_runs(ingested: Butler) -> None:
    expected = {"bias": "adu", "dark": "adu / s", "flat": ""}
    for kind, unit in expected.items():
        refs = ingested.query_datasets(kind, collections=f"SimCam/calib/{kind}/*", find_first=False)
        assert {ref.dataId["detector"] for ref in refs} == {0, 1}
        assert {str(ingested.get(ref).unit) for ref in refs} == {unit}
        assert {ref.run.rsplit("/", 1)[0] for ref in refs} == {f"SimCam/calib/{kind}"}


def test_correction_that_is_missing_is_named(simcam: Butler, night: SimulatedData) -> None:
    with pytest.raises(UserError, match=r"a flat of SimCam needs its bias.*ingest the bias frames first"):
        ingest_calibs(simcam, "flat", [night.raw_dir])
    ingest_calibs(simcam, "bias", [night.raw_dir])
    with pytest.raises(UserError, match="a flat of SimCam needs its dark"):
        ingest_calibs(simcam, "flat", [night.raw_dir])


def test_certified_master_gives_way_only_if_told(simcam: Butler, night: SimulatedData) -> None:
    always = Timespan(None, None)
    first = ingest_calibs(simcam, "bias", [night.raw_dir], output_run="SimCam/calib/first")
    with pytest.raises(
        RepositoryError, match=r"bias of detector [01] is certified in SimCam/calib .*calib/first"
    ):
        ingest_calibs(simcam, "bias", [night.raw_dir], output_run="SimCam/calib/second")
    assert "SimCam/calib/second" not in simcam.collections.query("*")
    ingest_calibs(simcam, "bias", [night.raw_dir], output_run="SimCam/calib/second", replace=True)
    found = simcam.find_dataset(
        "bias", instrument="SimCam", detector=0, collections="SimCam/calib", timespan=always
    )
    assert found is not None
    assert found.run == "SimCam/calib/second"
    assert {ref.run for ref in first} == {"SimCam/calib/first"}


def test_validity_chooses_between_masters(simcam: Butler, night: SimulatedData) -> None:
    ingest_raws(simcam, [night.raw_dir / "object*.fits"], transfer="direct")
    for run, begin, end in (("old", None, "2026-01-01"), ("new", "2026-01-01", None)):
        ingest_calibs(
            simcam,
            "bias",
            [night.raw_dir],
            output_run=f"SimCam/calib/{run}",
            validity=parse_validity(begin, end),
        )
    exposure = simcam.query_dimension_records("exposure", instrument="SimCam", exposure=night.visits[0])[0]
    before = astropy.time.Time("2025-06-01", scale="tai")
    for timespan, run in ((exposure.timespan, "new"), (Timespan.fromInstant(before), "old")):
        ref = simcam.find_dataset(
            "bias", instrument="SimCam", detector=1, collections="SimCam/defaults", timespan=timespan
        )
        assert ref is not None
        assert ref.run == f"SimCam/calib/{run}"


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [("soon", None, "begin of validity = 'soon'"), ("2026-01-02", "2026-01-01", "is empty")],
)
def test_validity_that_makes_no_sense_is_refused(begin: str, end: str | None, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_validity(begin, end)


def test_frames_of_other_kinds_alone_are_refused(simcam: Butler, night: SimulatedData) -> None:
    with pytest.raises(UserError, match="none of the 4 files is a bias frame; they are science"):
        ingest_calibs(simcam, "bias", [night.raw_dir / "object*.fits"])


def test_kind_that_the_camera_lacks_is_refused(butler: Butler, night: SimulatedData, tmp_path: Path) -> None:
    content = yaml.safe_load(night.camera.read_text())
    path = tmp_path / "nodark.yaml"
    path.write_text(yaml.safe_dump({**content, "calibrations": ["bias", "flat"]}))
    register_instrument(butler, path)
    with pytest.raises(UserError, match="SimCam has no dark calibration; it has bias, flat"):
        ingest_calibs(butler, "dark", [night.raw_dir])
    ingest_calibs(butler, "bias", [night.raw_dir])
    assert len(ingest_calibs(butler, "flat", [night.raw_dir])) == 2


def test_corrupt_or_misshapen_frame_is_named_and_nothing_written(
    simcam: Butler, night: SimulatedData, tmp_path: Path
) -> None:
    for index in (1, 2):
        shutil.copy(night.raw_dir / f"bias_20260101000{index}_00.fits", tmp_path / f"{index}.fits")
    content = (tmp_path / "2.fits").read_bytes()
    (tmp_path / "2.fits").write_bytes(content[:-20_000])
    with pytest.raises(UserError, match=r"2\.fits: truncated"):
        ingest_calibs(simcam, "bias", [tmp_path])
    with astropy.io.fits.open(night.raw_dir / "bias_202601010002_00.fits") as hdus:
        small = astropy.io.fits.PrimaryHDU(hdus[0].data[:100], hdus[0].header)
    small.writeto(tmp_path / "2.fits", overwrite=True, checksum=True)
    with pytest.raises(
        UserError, match=r"2\.fits: the image has 320 x 100 pixels; .* of detector S00 are 320 x 256"
    ):
        ingest_calibs(simcam, "bias", [tmp_path])
    assert not [name for name in simcam.collections.query("*") if name.startswith("SimCam/calib/bias")]


def test_masters_are_taken_as_they_are(simcam: Butler, night: SimulatedData, tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).normal(1.0, 0.01, (256, 256)).astype(np.float32)
    for detector in (0, 1):
        hdu = astropy.io.fits.PrimaryHDU(pixels + detector)
        hdu.header.update({"INSTRUME": "SimCam", "DETID": detector, "FILTER": "r"})
        hdu.writeto(tmp_path / f"flat{detector}.fits")
    refs = ingest_calibs(simcam, "flat", [tmp_path], master=True)
    assert [ref.dataId["physical_filter"] for ref in refs] == ["sim_r", "sim_r"]
    for detector in (0, 1):
        master = _master(simcam, "flat", detector=detector, physical_filter="sim_r")
        np.testing.assert_array_equal(master, pixels + detector)
    astropy.io.fits.writeto(
        tmp_path / "small.fits", pixels[:50], astropy.io.fits.getheader(tmp_path / "flat0.fits")
    )
    with pytest.raises(
        UserError, match=r"small\.fits: 256 x 50 pixels; a master of detector 0 has 256 x 256"
    ):
        ingest_calibs(simcam, "flat", [tmp_path / "small.fits"], master=True, replace=True)
    shutil.copy(tmp_path / "flat0.fits", tmp_path / "flat9.fits")
    with pytest.raises(UserError, match=r"flat9\.fits: another file is the flat of detector 0 too"):
        ingest_calibs(simcam, "flat", [tmp_path / "flat*.fits"], master=True, replace=True)


def test_defects_are_read_from_files_of_several_forms(simcam: Butler, tmp_path: Path) -> None:
    # A column and a pixel counted from 1, a rectangle counted from 0, and an image.
    (tmp_path / "a.csv").write_text("x1,x2,y1,y2\n11,11,1,256\n21,21,31,31\n")
    (tmp_path / "b.csv").write_text("x0,y0,width,height\n100,50,3,2\n")
    image = np.zeros((256, 256), dtype=np.uint8)
    image[7, 9] = 4
    astropy.io.fits.writeto(tmp_path / "c.fits", image)
    expected = image > 0
    expected[:, 10] = expected[30, 20] = expected[50:52, 100:103] = True
    files = [tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.fits"]
    for detector, run in (("S01", "u/first"), ("1", "u/second")):
        (ref,) = ingest_calibs(simcam, "defects", files, detector=detector, output_run=run, replace=True)
        assert ref.dataId["detector"] == 1
        found = simcam.get("defects", instrument="SimCam", detector=1, collections="SimCam/calib")
        np.testing.assert_array_equal(to_mask(found, (256, 256)), expected)


def test_masters_of_one_second_get_runs_of_their_own(
    simcam: Butler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Instrument, "makeCollectionTimestamp", lambda: "20260101T000000Z")
    (tmp_path / "bad.csv").write_text("x0,y0,width,height\n3,4,1,2\n")
    runs = []
    for detector in ("S00", "S01", "S00"):
        (ref,) = ingest_calibs(
            simcam, "defects", [tmp_path / "bad.csv"], detector=detector, instrument="SimCam", replace=True
        )
        runs.append(ref.run)
    assert len(set(runs)) == 3
    assert all(run.startswith("SimCam/calib/defects/20260101T000000Z") for run in runs)


def test_defects_that_can_not_be_placed_are_refused(simcam: Butler, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n300,1\n")
    for detector, expected in (
        (None, r"SimCam has several detectors \(S00, S01\); give the one of these defects"),
        ("S07", "SimCam has no detector 'S07'"),
        ("S00", r"a\.csv: the defect \[300:300, 1:1\] leaves the assembled detector S00 of 256 x 256 pixels"),
    ):
        with pytest.raises(UserError, match=expected):
            ingest_calibs(simcam, "defects", [tmp_path / "a.csv"], detector=detector)


def test_combination_leaves_outliers_out() -> None:
    rng = np.random.default_rng(4)
    frames = [rng.normal(100.0, 3.0, (300, 40)).astype(np.float32) for _ in range(5)]
    expected = np.mean(frames, axis=0)
    clean = combine(frames)
    # Hardly anything of pure noise may be lost.
    assert np.mean(np.isclose(clean, expected, atol=1e-3)) > 0.98
    frames[2][7, 9] += 1000.0
    assert combine(frames)[7, 9] == pytest.approx(np.mean([f[7, 9] for i, f in enumerate(frames) if i != 2]))
    np.testing.assert_array_equal(combine(frames[:1]), frames[0])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_variance_of_a_mean_follows_the_noise_of_its_pixels(count: int) -> None:
    rng = np.random.default_rng(5)
    sigma = np.full((320, 200), 3.0)
    sigma[:, 100:] = 4.5
    sigma[20, 30] = 2000.0
    frames = [rng.normal(100.0, sigma).astype(np.float32) for _ in range(count)]
    frames[0][7, 9] += 1000.0
    mean, variance = combine_with_variance(frames)
    for half, expected in ((np.s_[:, :92], 9.0 / count), (np.s_[:, 108:], 20.25 / count)):
        assert np.median(variance[half]) == pytest.approx(expected, rel=0.05)
        # No pixel's variance is that of its few values alone.
        assert np.std(variance[half][40:]) < 0.15 * expected
        assert np.var(mean[half][40:]) == pytest.approx(expected, rel=0.05)
    assert variance[20, 30] > 1000.0
    assert np.isnan(combine_with_variance(frames[:1])[1]).all()


def test_masters_of_repositories_of_earlier_releases_stay_plain_images(
    butler: Butler, night: SimulatedData
) -> None:
    old = DatasetType(
        "bias", ("instrument", "detector"), "ImageV2", universe=butler.dimensions, isCalibration=True
    )
    butler.registry.registerDatasetType(old)
    register_instrument(butler, night.camera)
    refs = ingest_calibs(butler, "bias", [night.raw_dir])
    assert isinstance(butler.get(refs[0]), Image)
    ingest_calibs(butler, "dark", [night.raw_dir])
    # The pipelines read both forms of masters, and can write the old one.
    isr = PipelineGraph()
    isr.add_task("isr", IsrTask)
    isr.resolve(butler.registry)
    for do_variance in (False, True):
        config: Any = CpBiasCombineTask.ConfigClass()
        config.do_variance = do_variance
        graph = PipelineGraph()
        graph.add_task("combine", CpBiasCombineTask, config)
        if do_variance:
            with pytest.raises(IncompatibleDatasetTypeError, match="bias"):
                graph.resolve(butler.registry)
        else:
            graph.resolve(butler.registry)
    assert butler.get_dataset_type("dark").storageClass_name == "MaskedImageV2"


def test_flat_without_light_is_refused() -> None:
    with pytest.raises(ValueError, match="no illumination"):
        normalize(np.zeros((4, 4), dtype=np.float32))


def test_real_bias_and_flat_are_combined(
    butler: Butler, cameras: Path, real_data: Callable[[str], Path]
) -> None:
    folder = real_data("opd_ngc346")
    camera = register_instrument(butler, cameras / "opd_ixon.yaml")
    (bias,) = ingest_calibs(butler, "bias", [folder])
    (flat,) = ingest_calibs(butler, "flat", [folder])
    assert np.median(butler.get(bias).image.array) == pytest.approx(400.5, abs=1.0)
    response = butler.get(flat).image.array
    assert np.median(response) == pytest.approx(1.0, abs=1e-4)
    assert 0.003 < np.std(response) < 0.03
    # Photon transfer of two flats gives back the gain of the description.
    first, second = (
        astropy.io.fits.getdata(folder / f"FLAT_2x2_V_{index}.fits").astype(float)
        - butler.get(bias).image.array
        for index in (0, 1)
    )
    box = np.s_[100:400, 100:400]
    difference = (first / np.mean(first[box]) - second / np.mean(second[box]))[box]
    variance = 0.5 * np.var(difference) * np.mean(first[box]) * np.mean(second[box])
    (amplifier,) = camera.get_detector(0).amplifiers
    read_variance = (amplifier.read_noise / amplifier.gain) ** 2
    assert np.mean(first[box]) / (variance - read_variance) == pytest.approx(amplifier.gain, rel=0.05)


def test_every_real_exposure_finds_its_calibrations(
    butler: Butler, cameras: Path, real_data: Callable[[str], Path]
) -> None:
    folder = real_data("opd_ngc346")
    register_instrument(butler, cameras / "opd_ixon.yaml")
    ingest_raws(butler, [folder], transfer="direct")
    ingest_calibs(butler, "bias", [folder])
    ingest_calibs(butler, "flat", [folder])
    exposures = butler.query_dimension_records(
        "exposure", instrument="OPD-Ixon", where="exposure.observation_type = 'science'"
    )
    for exposure in exposures:
        for kind, extra in (("bias", {}), ("flat", {"physical_filter": exposure.physical_filter})):
            assert butler.find_dataset(
                kind,
                {"instrument": "OPD-Ixon", "detector": 0, **extra},
                collections="OPD-Ixon/defaults",
                timespan=exposure.timespan,
            )


def test_master_flat_in_counts_is_normalized(simcam: Butler, night: SimulatedData, tmp_path: Path) -> None:
    header = astropy.io.fits.Header({"INSTRUME": "SimCam", "DETID": 0, "FILTER": "r"})
    counts = np.linspace(24000.0, 36000.0, 256 * 256, dtype=np.float32).reshape(256, 256)
    astropy.io.fits.PrimaryHDU(counts, header).writeto(tmp_path / "flat.fits")
    (ref,) = ingest_calibs(simcam, "flat", [tmp_path / "flat.fits"], master=True)
    np.testing.assert_allclose(simcam.get(ref).image.array, counts / 30000.0, rtol=1e-4)
    astropy.io.fits.PrimaryHDU(counts * 0, header).writeto(tmp_path / "dark.fits")
    with pytest.raises(UserError, match=r"dark\.fits: the median is 0"):
        ingest_calibs(simcam, "flat", [tmp_path / "dark.fits"], master=True, replace=True)
