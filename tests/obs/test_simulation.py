from __future__ import annotations

from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pytest
from astropy.table import Table

from spark_butler.demo.simulation import SimulatedData, read_table, simulate
from spark_butler.obs import CameraDescription
from spark_butler.obs.assembly import assemble

SMALL: dict[str, Any] = {"visits": 1, "detectors": 1, "size": 128}


def _contents(data: SimulatedData) -> dict[str, bytes]:
    # Creation dates of checksums are the only bytes that differ from call to call.
    return {path.name: astropy.io.fits.getdata(path).tobytes() for path in data.raws}


def test_same_seed_gives_the_same_pixels_and_another_seed_others(tmp_path: Path) -> None:
    first = simulate(tmp_path / "a", seed=5, **SMALL)
    again = simulate(tmp_path / "b", seed=5, **SMALL)
    other = simulate(tmp_path / "c", seed=6, **SMALL)
    assert _contents(first) == _contents(again)
    assert _contents(first).keys() == _contents(other).keys()
    assert all(pixels != _contents(other)[name] for name, pixels in _contents(first).items())


def test_more_visits_leave_the_first_as_it_is(tmp_path: Path) -> None:
    one = _contents(simulate(tmp_path / "a", seed=5, **SMALL))
    two = _contents(simulate(tmp_path / "b", seed=5, **{**SMALL, "visits": 2}))
    assert len(two) == len(one) + 1
    assert all(two[name] == pixels for name, pixels in one.items())


def test_frames_are_raw_uint16_with_the_described_size(night: SimulatedData) -> None:
    assert len(night.raws) == 2 * (2 + 5 + 3 + 5)
    camera = CameraDescription.from_yaml(night.camera)
    detector = camera.get_detector(1)
    with astropy.io.fits.open(night.raw_dir / f"object_{night.visits[0]}_01.fits") as hdus:
        assert hdus[0].header["BITPIX"] == 16
        assert hdus[0].header["BZERO"] == 32768
        assert hdus[0].header["DETID"] == 1
        assert hdus[0].data.shape == (detector.raw_ny, detector.raw_nx)
        assert hdus[0].data.dtype == np.uint16


def _electrons(night: SimulatedData, visit: int, detector_id: int) -> np.ndarray:
    detector = CameraDescription.from_yaml(night.camera).get_detector(detector_id)
    image = assemble(
        astropy.io.fits.getdata(night.raw_dir / f"object_{visit}_{detector_id:02d}.fits"), detector
    ).image
    for amplifier in detector.amplifiers:
        image[amplifier.section.slices] *= amplifier.gain
    return image


def _isolated(truth: Table, size: int) -> Table:
    """Return bright unsaturated stars away from the edges and from neighbors that matter."""
    keep = []
    for row in truth:
        distance = np.hypot(truth["x"] - row["x"], truth["y"] - row["y"])
        crowd = (distance < 25) & (truth["mag"] < row["mag"] + 3)
        inside = 16 < row["x"] < size - 16 and 16 < row["y"] < size - 16
        keep.append(bool(row["is_star"] and 16 < row["mag"] < 20 and crowd.sum() == 1 and inside))
    return truth[keep]


def test_stars_have_their_true_positions_and_fluxes(tmp_path: Path) -> None:
    night = simulate(tmp_path, visits=1, detectors=1, size=768, seed=11)
    truth = read_table(night.truth)
    image = _electrons(night, night.visits[0], 0)
    image -= np.median(image)
    hits = read_table(night.cosmic_rays)
    defects = CameraDescription.from_yaml(night.camera).get_detector(0).defects
    offsets, ratios = [], []
    y, x = np.indices(image.shape)
    for star in _isolated(truth, 768):
        near = np.hypot(x - star["x"], y - star["y"]) < 12
        if np.any(np.hypot(hits["x"] - star["x"], hits["y"] - star["y"]) < 15):
            continue
        if any(d.x_start - 15 < star["x"] < d.x_stop + 15 for d in defects):
            continue
        core = near & (np.hypot(x - star["x"], y - star["y"]) < 6)
        weight = np.clip(image[core], 0, None)
        offsets.append(
            (np.average(x[core], weights=weight) - star["x"], np.average(y[core], weights=weight) - star["y"])
        )
        ratios.append(image[near].sum() / star["flux"])
    assert len(offsets) >= 8
    np.testing.assert_allclose(np.median(offsets, axis=0), 0.0, atol=0.1)
    # An aperture of 12 pixels holds some 99 % of a Moffat profile; vignetting takes a few per cent.
    assert 0.9 < np.median(ratios) < 1.02
    # Faint neighbors and hot pixels give a tail, hence the robust measure.
    assert 1.4826 * np.median(np.abs(ratios - np.median(ratios))) < 0.06


def test_sky_noise_and_levels_are_those_of_the_truth(night: SimulatedData) -> None:
    truth = read_table(night.truth)
    camera = CameraDescription.from_yaml(night.camera)
    for detector in camera.detectors:
        image = _electrons(night, night.visits[0], detector.id)
        (sky,) = set(truth["sky"][(truth["visit"] == night.visits[0]) & (truth["detector"] == detector.id)])
        for amplifier in detector.amplifiers:
            pixels = image[amplifier.section.slices]
            assert abs(np.median(pixels) / sky - 1.0) < 0.15
            noise = 1.4826 * np.median(np.abs(pixels - np.median(pixels)))
            expected = np.hypot(np.sqrt(np.median(pixels)), amplifier.read_noise)
            assert 0.9 < noise / expected < 1.35


def test_overscan_shows_gain_and_read_noise_of_each_amplifier(night: SimulatedData) -> None:
    camera = CameraDescription.from_yaml(night.camera)
    for detector in camera.detectors:
        frames = [
            astropy.io.fits.getdata(path).astype(float)
            for path in night.raws
            if path.name.startswith("bias") and path.name.endswith(f"_{detector.id:02d}.fits")
        ]
        for amplifier in detector.amplifiers:
            assert amplifier.raw_overscan_section is not None
            noise = [np.std(frame[amplifier.raw_overscan_section.slices]) for frame in frames]
            assert np.mean(noise) * amplifier.gain == pytest.approx(amplifier.read_noise, rel=0.03)


def test_defects_and_cosmic_rays_are_where_the_truth_says(night: SimulatedData) -> None:
    camera = CameraDescription.from_yaml(night.camera)
    hits = read_table(night.cosmic_rays)
    for detector in camera.detectors:
        image = _electrons(night, night.visits[1], detector.id)
        dead, hot = detector.defects
        assert np.median(image[dead.slices]) < 0.2 * np.median(image)
        assert np.median(image[hot.slices]) > 10_000
        mine = hits[(hits["visit"] == night.visits[1]) & (hits["detector"] == detector.id)]
        strong = mine[mine["electrons"] > 1000]
        for hit in strong:
            assert image[hit["y"], hit["x"]] > np.median(image) + 500


def test_reference_catalog_has_the_stars_with_their_errors(tmp_path: Path) -> None:
    night = simulate(tmp_path, **SMALL, stars_per_arcmin2=1000)
    refcat = Table.read(night.refcat)
    truth = read_table(night.truth)
    stars = truth[truth["is_star"]]
    by_id = {row["id"]: row for row in stars}
    matched = [(row, by_id[row["id"]]) for row in refcat if row["id"] in by_id]
    assert len(matched) > 20
    mas = [3.6e6 * (ref["dec"] - true["dec"]) for ref, true in matched]
    assert 2.0 < np.std(mas) < 15.0
    assert 0.002 < np.std([ref["r_mag"] - true["mag"] for ref, true in matched]) < 0.02
    assert not set(refcat["id"]) & set(truth["id"][~truth["is_star"]])
