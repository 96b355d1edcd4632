from __future__ import annotations

from pathlib import Path

import astropy.io.fits
import numpy as np
import pytest

from spark_butler.demo.simulation import SCENES, SimulatedData, read_table, simulate
from spark_butler.obs import CameraDescription


def make(tmp_path: Path, scene: str | None) -> SimulatedData:
    return simulate(
        tmp_path / str(scene), visits=1, detectors=1, size=256, seed=4, stars_per_arcmin2=60.0, scene=scene
    )


def science(night: SimulatedData) -> np.ndarray:
    """Return the pixels of the science frame, overscan included."""
    (path,) = night.raw_dir.glob("object_*.fits")
    return np.asarray(astropy.io.fits.getdata(path), dtype=np.float64)


@pytest.mark.parametrize("scene", sorted(set(SCENES) - {"packed", "crowded"}))
def test_every_scene_has_frames_of_the_usual_size_and_truth(scene: str, tmp_path: Path) -> None:
    night = make(tmp_path, scene)
    camera = CameraDescription.from_yaml(night.camera).get_detector(0)
    assert science(night).shape == (camera.raw_ny, camera.raw_nx)
    truth = read_table(night.truth)
    stars = truth[truth["is_star"]]
    assert len(stars) > 20
    assert np.isfinite(stars["x"]).all()


def test_the_overscan_shows_the_ramp_of_the_bias_level(tmp_path: Path) -> None:
    night = make(tmp_path, "overscan_ramp")
    overscan = CameraDescription.from_yaml(night.camera).get_detector(0).amplifiers[0].raw_overscan_section
    assert overscan is not None
    rows = science(night)[overscan.slices].mean(axis=1)
    assert rows[-20:].mean() - rows[:20].mean() == pytest.approx(60.0 * 236 / 255, rel=0.05)


def test_pixels_saturate_below_the_described_level(tmp_path: Path) -> None:
    assert science(make(tmp_path, "low_saturation")).max() <= 30000.0


def test_a_distortion_moves_stars_outward_from_where_the_header_has_them(tmp_path: Path) -> None:
    night = make(tmp_path, "distorted")
    truth = read_table(night.truth)
    (path,) = night.raw_dir.glob("object_*.fits")
    header = astropy.io.fits.getheader(path)
    wcs = CameraDescription.from_yaml(night.camera).initial_wcs(
        0, header["RA"], header["DEC"], header["ROTPA"]
    )
    x, y = wcs.all_world2pix(np.asarray(truth["ra"]), np.asarray(truth["dec"]), 0)
    radius = np.hypot(x - 127.5, y - 127.5)
    moved = np.hypot(np.asarray(truth["x"]) - x, np.asarray(truth["y"]) - y)
    # The corner is 180 pixels from the center, and the distortion a third power.
    np.testing.assert_allclose(moved, 10.0 * (radius / np.hypot(127.5, 127.5)) ** 3, atol=1e-3)


def test_an_unknown_scene_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scene = 'nice' is not a known scene; known are overscan_ramp"):
        simulate(tmp_path, scene="nice")
