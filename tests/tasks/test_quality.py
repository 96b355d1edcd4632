from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial

from spark_butler.tasks.calibrate import NoSourcesError
from spark_butler.tasks.isr import CalibrationRangeError
from spark_butler.tasks.pixels.artifacts import find_defects
from spark_butler.tasks.quality import QualityLimitError
from tests.tasks.scene_harness import ZERO_POINT, make_camera, make_references, make_scene, process

pytestmark = pytest.mark.pipeline


def test_a_good_image_is_not_flagged_and_its_numbers_are_true() -> None:
    scene = make_scene(change=1.0)
    done = process(scene)
    assert not done.summary["image_flag"]
    assert done.summary["image_flag_reasons"] == ""
    assert not done.column("image_flag").any()
    assert done.summary["quality_noise_ratio"] == pytest.approx(1.0, abs=0.03)
    assert done.summary["psfFwhm"] == pytest.approx(4.0, rel=0.02)
    assert done.summary["zeroPoint"] == pytest.approx(ZERO_POINT, abs=0.01)


def test_errors_of_coordinates_are_those_of_the_positions() -> None:
    scene = make_scene(640, 250, flux=(1e3, 3e4), seed=13)
    done = process(scene)
    distance, index = done.match()
    ra, dec = make_camera(640).initial_wcs(0, 30.0, 10.0, 0.0).all_pix2world(scene.x, scene.y, 0)
    apart = scipy.spatial.cKDTree(np.column_stack([scene.x, scene.y]))
    good = (distance < 1.0) & (apart.query(apart.data, k=2)[0][:, 1] > 12.0)
    good &= ~done.column("pixelFlags_edge")[index]
    assert np.count_nonzero(good) > 80
    errors = (
        ((done.column("coord_ra")[index] - ra) * np.cos(np.deg2rad(dec)), done.column("raErr")[index]),
        (done.column("coord_dec")[index] - dec, done.column("decErr")[index]),
    )
    for error, sigma in errors:
        assert 1.4826 * np.median(np.abs(error / sigma)[good]) == pytest.approx(1.0, abs=0.25)


def test_the_stored_psf_and_correction_give_the_catalogs_fluxes() -> None:
    scene = make_scene(size=640, count=80, change=1.0, flux=(2e4, 3e5))
    done = process(scene)
    tree = scipy.spatial.cKDTree(np.column_stack([scene.x, scene.y]))
    apart = tree.query(tree.data, k=2)[0][:, 1] > 30.0
    inside = (np.minimum(scene.x, scene.y) > 25.0) & (np.maximum(scene.x, scene.y) < 614.0)
    correction = done.image.aperture_corrections["psfFlux"]
    pixels = done.image.image.array.astype(float)
    ratios = []
    for x, y, flux in zip(*(v[apart & inside] for v in (scene.x, scene.y, scene.flux)), strict=True):
        star = done.image.psf.compute_stellar_image(x=x, y=y)
        cut = pixels[star.bbox.y.start : star.bbox.y.stop, star.bbox.x.start : star.bbox.x.stop]
        fitted = (cut * star.array).sum() / (star.array**2).sum() * correction(x=x, y=y)
        ratios.append(fitted / (flux * 10.0 ** (-0.4 * (ZERO_POINT - 31.4))))
    assert len(ratios) > 15
    assert np.median(ratios) == pytest.approx(1.0, abs=0.01)
    distance, index = done.match()
    good = apart & inside & (distance < 1.0)
    catalog = done.column("psfFlux")[index][good] / (scene.flux[good] * 10.0 ** (-0.4 * (ZERO_POINT - 31.4)))
    assert np.median(catalog) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("amplifier", "bias", "reason"),
    [({"gain": 6.0}, 0.0, "noise_ratio"), ({"gain": 0.4}, 0.0, "noise_ratio"), ({}, 1000.0, "noise_ratio")],
)
def test_a_variance_that_is_not_the_noise_is_flagged(
    amplifier: dict[str, float], bias: float, reason: str
) -> None:
    scene = make_scene()
    done = process(scene, raw=scene.raw(bias=bias), camera=make_camera(512, **amplifier))
    assert reason in done.summary["image_flag_reasons"].split(",")
    assert done.column("image_flag").all()


def test_digits_coarser_than_the_noise_are_flagged() -> None:
    scene = make_scene()
    raw = np.rint(scene.raw(bias=0.0) / 200.0).astype(np.uint8)
    done = process(scene, raw=raw, camera=make_camera(512, gain=300.0))
    assert "noise_ratio" in done.summary["image_flag_reasons"].split(",")
    assert done.summary["skyNoise"] == 0.0
    assert np.isnan(done.summary["magLim"])


def test_a_limit_may_fail_the_quantum_and_names_value_and_limit() -> None:
    with pytest.raises(QualityLimitError, match=r"noise_ratio = 0\.\d+ \(expected: at least 0.8"):
        process(make_scene(), camera=make_camera(512, gain=0.4), calibrate={"quality.action": "fail"})


def test_a_bayer_mosaic_is_flagged() -> None:
    scene = make_scene()
    scene.expected[0::2, 0::2] *= 0.5
    scene.expected[1::2, 1::2] *= 0.7
    assert "phase_difference" in process(scene).summary["image_flag_reasons"]


def test_banding_is_flagged() -> None:
    scene = make_scene(sky=100.0)
    raw = scene.raw(bias=0.0) + np.random.default_rng(1).normal(0.0, 4.0, (512, 1))
    done = process(scene, raw=np.maximum(raw, 0.0).astype(np.float32))
    assert "line_noise" in done.summary["image_flag_reasons"]


@pytest.mark.parametrize("kind", ["glow", "galaxy"])
def test_structure_in_the_sky_is_flagged(kind: str) -> None:
    scene = make_scene()
    yy, xx = np.mgrid[:512, :512]
    if kind == "glow":
        scene.expected += 2000.0 * np.exp(-np.hypot(xx, yy) / 40.0)
    else:
        radius = np.hypot(xx - 256, (yy - 256) / 0.7)
        scene.expected += 400.0 * np.exp(-7.67 * ((radius / 100.0) ** 0.25 - 1.0))
    assert process(scene).summary["image_flag"]


def test_a_trail_spoils_neither_psf_nor_zero_point_and_its_sources_are_flagged() -> None:
    scene = make_scene(count=150)
    yy, xx = np.mgrid[:512, :512]
    scene.expected += 400.0 * np.exp(-0.5 * (((xx - 256) * 0.5 - (yy - 256) * 0.866) / 1.6) ** 2)
    done = process(scene)
    assert done.summary["psfFwhm"] == pytest.approx(3.5, rel=0.05)
    assert done.summary["zeroPoint"] == pytest.approx(ZERO_POINT, abs=0.02)
    distance = np.abs((done.column("x") - 256) * 0.5 - (done.column("y") - 256) * 0.866)
    assert done.column("streak_flag")[distance < 2.0].mean() > 0.9
    assert not done.column("streak_flag")[distance > 30.0].any()
    assert "streak_fraction" in done.summary["image_flag_reasons"]


def test_sources_of_a_trail_that_breaks_up_in_the_noise_are_flagged() -> None:
    scene = make_scene(count=150)
    yy, xx = np.mgrid[:512, :512]
    # In each pixel the light is a fifth more than the noise.
    scene.expected += 18.0 * np.exp(-0.5 * (((xx - 256) * 0.5 - (yy - 256) * 0.866) / 1.6) ** 2)
    done = process(scene)
    flagged = done.column("streak_flag")
    distance, _ = scipy.spatial.cKDTree(np.column_stack([scene.x, scene.y])).query(
        np.column_stack([done.column("x"), done.column("y")])
    )
    assert np.count_nonzero(distance > 3.0) > 10
    assert flagged[distance > 3.0].all()
    across = np.abs((done.column("x") - 256) * 0.5 - (done.column("y") - 256) * 0.866)
    assert not flagged[across > 12.0].any()


def test_an_image_of_a_telescope_that_jumped_is_flagged() -> None:
    scene = make_scene(size=640, count=100, flux=(5e3, 2e5))
    stars = scene.expected - 200.0
    scene.expected = 200.0 + 0.7 * stars + 0.3 * np.roll(stars, (5, 14), axis=(0, 1))
    done = process(scene)
    assert done.summary["image_flag_reasons"] == "doubled_fraction"
    # Nearly all of the second images are found.
    assert 0.3 < done.summary["quality_doubled_fraction"] <= 0.5


def test_donuts_are_flagged_and_not_calibrated() -> None:
    scene = make_scene(count=0)
    rng = np.random.default_rng(2)
    scene.x, scene.y = rng.uniform(20, 490, (2, 40))
    scene.flux = np.exp(rng.uniform(np.log(2e4), np.log(1e6), 40))
    yy, xx = np.mgrid[:512, :512]
    for x, y, flux in zip(scene.x, scene.y, scene.flux, strict=True):
        r = np.hypot(xx - x, yy - y)
        scene.expected += flux * 0.5 * (np.tanh((10 - r) / 1.5) - np.tanh((4 - r) / 1.5)) / (84.0 * np.pi)
    done = process(scene)
    assert "psf" in done.summary["image_flag_reasons"]
    assert np.isnan(done.column("psfFlux")).all()


def test_references_that_scatter_calibrate_nothing() -> None:
    scene = make_scene()
    camera = make_camera(512)
    done = process(scene, camera=camera, references=make_references(camera, scene, scatter=1.0))
    assert "zero_point_scatter" in done.summary["image_flag_reasons"]
    assert np.isnan(done.column("psfFlux")).all()
    assert np.isfinite(done.column("instFlux")).all()


def test_a_detector_that_is_not_linear_is_flagged_with_what_its_brightest_star_lost() -> None:
    scene = make_scene(count=80, flux=(1e4, 1e6))
    scene.expected *= 1.0 - 0.06 * np.clip(scene.expected / 5e4, 0.0, 2.0)
    done = process(scene)
    assert "nonlinearity" in done.summary["image_flag_reasons"]
    distance, index = done.match()
    alone = scipy.spatial.cKDTree(np.column_stack([scene.x, scene.y]))
    good = (distance < 0.5) & (alone.query(alone.data, k=2)[0][:, 1] > 20.0)
    for name in ("pixelFlags_edge", "pixelFlags_saturated"):
        good &= ~done.column(name)[index]
    ratio = done.column("instFlux")[index] / scene.flux
    faint = good & (scene.flux < 5e4)
    brightest = int(np.argmax(np.where(good, scene.flux, 0.0)))
    lost = 1.0 - ratio[brightest] / np.median(ratio[faint])
    assert lost > 0.02
    assert done.summary["quality_nonlinearity"] == pytest.approx(lost, rel=0.3)


@pytest.mark.parametrize("change", [0.0, 1.5])
def test_bright_stars_on_a_linear_detector_have_lost_nothing(change: float) -> None:
    done = process(make_scene(count=80, flux=(1e4, 1e6), change=change))
    assert done.summary["quality_nonlinearity"] < 0.005
    assert not done.summary["image_flag"]


def test_a_loss_that_cores_do_not_show_is_known_from_references() -> None:
    scene = make_scene(count=100, flux=(1e4, 5e5), seed=5)
    camera = make_camera(512)
    references = make_references(camera, scene)
    # Of each star's light, wings and core lose the same share.
    lost = 0.05 * scene.flux / scene.flux.max()
    references[0].get()["r_flux"] /= 1.0 - lost
    done = process(scene, camera=camera, references=references)
    assert "nonlinearity" in done.summary["image_flag_reasons"]
    # The cores, which say nothing was lost, count as much as the references.
    assert 0.015 < done.summary["quality_nonlinearity"] < 0.055


def test_a_bright_star_that_is_variable_proves_nothing_about_the_detector() -> None:
    scene = make_scene(count=80, flux=(1e4, 2e5))
    camera = make_camera(512)
    references = make_references(camera, scene)
    references[0].get()["r_flux"][np.argmax(scene.flux)] *= 1.1
    done = process(scene, camera=camera, references=references)
    assert not done.summary["image_flag"]


def test_a_bright_star_that_is_two_proves_nothing_about_the_detector() -> None:
    scene = make_scene(count=60, flux=(5e3, 1e5))
    star = make_scene(count=1, flux=(5e5, 5e5), seed=3).expected - 200.0
    # Two stars that are a pixel apart.
    scene.expected += star + np.roll(star, 1, axis=1)
    assert "nonlinearity" not in process(scene).summary["image_flag_reasons"]


@pytest.mark.parametrize(("count", "flagged"), [(1106, True), (111, False)])
def test_crowding_by_stars_too_faint_to_be_detected_is_flagged(count: int, flagged: bool) -> None:
    scene = make_scene(192, 25, flux=(3e3, 1e5))
    # 30,000 or 3,000 stars in a megapixel.
    scene.expected += make_scene(192, count, flux=(100.0, 1500.0), seed=8).expected - 200.0
    reasons = process(scene).summary["image_flag_reasons"].split(",")
    assert ("confusion" in reasons) is flagged


def test_fluxes_are_right_where_few_stars_know_the_aperture_correction() -> None:
    scene = make_scene(count=30, flux=(4e3, 2e4), seed=1)
    done = process(scene)
    distance, index = done.match()
    apart = scipy.spatial.cKDTree(np.column_stack([scene.x, scene.y]))
    good = (distance < 0.7) & (apart.query(apart.data, k=2)[0][:, 1] > 20.0)
    good &= ~done.column("pixelFlags_edge")[index]
    ratio = done.column("instFlux")[index] / scene.flux
    assert np.median(ratio[good]) == pytest.approx(1.0, abs=0.01)


def test_an_image_without_sources_fails() -> None:
    with pytest.raises(NoSourcesError, match="No source was detected"):
        process(make_scene(count=0))


def test_a_flat_in_counts_is_refused_with_its_median() -> None:
    flat = np.full((512, 512), 30000.0, dtype=np.float32)
    with pytest.raises(CalibrationRangeError, match="has a median of 30000"):
        process(make_scene(), flat=flat)


def test_undersampled_stars_are_found_and_measured() -> None:
    scene = make_scene(count=150, fwhm=1.3, beta=4.0)
    done = process(scene)
    distance, _ = done.match()
    tree = scipy.spatial.cKDTree(np.column_stack([scene.x, scene.y]))
    inside = (np.minimum(scene.x, scene.y) > 5) & (np.maximum(scene.x, scene.y) < 506)
    alone = (tree.query(tree.data, k=2)[0][:, 1] > 6.0) & inside
    assert np.mean(distance[alone] < 1.0) >= 0.97
    assert done.summary["psfFwhm"] == pytest.approx(1.3, rel=0.02)


def test_dead_pixels_and_hot_columns_are_found_and_stars_are_not() -> None:
    rng = np.random.default_rng(4)
    scene = make_scene(count=60)
    image = (rng.poisson(scene.expected) - 200.0) / 15.0
    dead = rng.uniform(size=image.shape) < 0.03
    image[dead] = -200.0 / 15.0
    image[100:, 300] += 4.0
    found = find_defects(image, np.zeros(image.shape, dtype=bool))
    assert found[dead].mean() > 0.99
    assert found[100:, 300].all()
    expected = dead.copy()
    expected[:, 300] = True
    assert np.mean(found & ~expected) < 1e-4


def test_columns_of_bright_stars_are_no_defects() -> None:
    yy, xx = np.mgrid[:256, :256]
    image = np.random.default_rng(5).normal(size=(256, 256))
    for x in (60, 190):
        for y in range(20, 256, 48):
            squared = (xx - x) ** 2 + (yy - y) ** 2
            image += 2000.0 * (1.0 + squared / 24.0) ** -3.0
    assert not find_defects(image, np.zeros(image.shape, dtype=bool)).any()


def test_dead_pixels_do_not_change_the_aperture_correction() -> None:
    # Stars have a halo that the fitted PSF lacks.
    scene, halo = (make_scene(count=150, flux=(2e4, 3e5), fwhm=fwhm) for fwhm in (3.5, 9.0))
    scene.expected = 0.85 * scene.expected + 0.15 * halo.expected
    raw = scene.raw(bias=0.0)
    whole = process(scene, raw=raw).summary["apertureCorrection"]
    assert whole > 1.005
    dead = raw.copy()
    dead[np.random.default_rng(4).random(raw.shape) < 0.03] = 0
    done = process(scene, raw=dead)
    assert done.image.mask.get("BAD").mean() > 0.025
    assert done.summary["apertureCorrection"] == pytest.approx(whole, rel=0.005)
    assert np.isfinite(done.column("psfFlux_apCorrErr")).all()


def test_stars_are_reserved_where_there_are_enough() -> None:
    done = process(make_scene(count=200, flux=(1e4, 2e5)))
    for what in ("psf", "photometry"):
        used, reserved = done.column(f"calib_{what}_used"), done.column(f"calib_{what}_reserved")
        assert not (used & reserved).any()
        assert 0.1 < np.count_nonzero(reserved) / np.count_nonzero(used | reserved) < 0.2
        # Reserved stars are as bright as the others.
        flux = done.column("instFlux")
        assert 0.5 < np.median(flux[reserved]) / np.median(flux[used]) < 2.0
    assert done.summary["quality_psf_residual"] < 0.03
    magnitudes = -2.5 * np.log10(done.column("psfFlux") / done.column("refFlux"))[reserved]
    assert done.summary["quality_zero_point_offset"] == pytest.approx(abs(np.median(magnitudes)), abs=1e-6)
    assert done.summary["zeroPointScatter"] == pytest.approx(1.4826 * np.median(np.abs(magnitudes)), abs=1e-6)
    assert done.summary["zeroPoint"] == pytest.approx(ZERO_POINT, abs=0.01)
    few = process(make_scene(count=30, flux=(1e4, 2e5)))
    for what in ("psf", "photometry"):
        assert few.column(f"calib_{what}_used").any()
        assert not few.column(f"calib_{what}_reserved").any()


def test_a_zero_point_of_the_bright_stars_alone_is_flagged() -> None:
    scene = make_scene(count=200, flux=(3e3, 2e5))
    camera = make_camera(512)
    references = make_references(camera, scene)
    faint = scene.flux < np.percentile(scene.flux, 60)
    references[0].get()["r_flux"][faint] *= 1.4
    done = process(scene, camera=camera, references=references)
    # The fit has clipped the faint stars; only the reserved stars show the offset.
    assert done.summary["quality_zero_point_error"] < 0.05
    assert done.summary["quality_zero_point_offset"] == pytest.approx(2.5 * np.log10(1.4), rel=0.2)
    assert "zero_point_offset" in done.summary["image_flag_reasons"]
    assert np.isnan(done.column("psfFlux")).all()


def test_clouds_over_one_side_are_flagged() -> None:
    # The sky is as dark as the stars, so that it does not show the loss of a fifth of the light.
    scene = make_scene(size=640, count=200, flux=(5e3, 2e5))
    scene.expected *= np.linspace(1.0, 0.8, 640)
    done = process(scene)
    assert done.summary["image_flag_reasons"] == "zero_point_trend"
    assert done.summary["quality_zero_point_trend"] == pytest.approx(
        0.9 * 2.5 * np.log10(1.0 / 0.8), rel=0.15
    )
