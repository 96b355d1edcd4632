"""Settings of the tasks that are off by default."""

from __future__ import annotations

import numpy as np
import pytest

from spark_butler.tasks.characterize import NoPsfStarsError
from tests.tasks.scene_harness import SCALE, ZERO_POINT, make_camera, make_references, make_scene, process


@pytest.mark.parametrize(("pixels_off", "matched"), [(0.0, True), (1.0, True), (10.0, False)])
def test_projection_that_is_not_refined_stays_and_matches_only_if_right(
    pixels_off: float, matched: bool
) -> None:
    camera, scene = make_camera(256), make_scene(256, count=30)
    pointing = (30.0, 10.0 + pixels_off * SCALE / 3600.0, 0.0)
    done = process(
        scene,
        camera=camera,
        references=make_references(camera, scene),
        calibrate={"do_astrometry": False},
        boresight=pointing,
    )
    ra, dec = camera.initial_wcs(0, *pointing).all_pix2world(done.column("x"), done.column("y"), 0)
    np.testing.assert_allclose(done.column("ra"), ra, atol=1e-9)
    np.testing.assert_allclose(done.column("dec"), dec, atol=1e-9)
    assert (done.summary["nRefMatched"] >= 20) == matched
    if matched:
        # The median distance of Gaussian positions in two dimensions is 1.18 times their error.
        assert done.summary["astromScatter"] / SCALE == pytest.approx(pixels_off / 1.18, abs=0.1)
    assert done.summary["zeroPoint"] == pytest.approx(
        ZERO_POINT if matched else np.nan, abs=0.02, nan_ok=True
    )


def test_too_few_psf_stars_fail_the_image_only_if_they_are_required() -> None:
    scene = make_scene(256, count=2, flux=(5e4, 1e5))
    assert len(process(scene).source) == 2
    with pytest.raises(NoPsfStarsError, match=r"Fewer than 3 isolated stars .* among 2 detections: no PSF"):
        process(scene, characterize={"require_psf_stars": True})
