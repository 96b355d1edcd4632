from __future__ import annotations

import galsim
import numpy as np
import pytest

from tests.tasks.scene_harness import Processed, Scene, make_scene, process


@pytest.fixture(scope="module")
def crowded() -> Processed:
    """3,000 stars per 1024 x 1024 pixels."""
    return process(make_scene(512, 750, fwhm=4.0, flux=(1e3, 5e4), seed=11))


def unblended(scene: Scene, radius: float) -> np.ndarray:
    """Return which stars have nine tenths of the light within a radius, and keep from the edges."""
    near = np.hypot(scene.x[:, None] - scene.x, scene.y[:, None] - scene.y) < radius
    inside = (np.minimum(scene.x, scene.y) > 12) & (np.maximum(scene.x, scene.y) < 500)
    return np.asarray(inside & ((near * scene.flux).sum(axis=1) < 1.1 * scene.flux))


def test_unblended_stars_beside_much_brighter_ones_are_found(crowded: Processed) -> None:
    distance, _ = crowded.match()
    chosen = unblended(crowded.scene, 8.0)
    assert np.count_nonzero(chosen) > 200
    assert np.mean(distance[chosen] < 2.0) >= 0.97


def test_compact_galaxies_in_a_crowded_field_are_not_taken_apart() -> None:
    scene = make_scene(512, 800, seed=1)
    x, y = np.random.default_rng(101).uniform(25, 486, (2, 12))
    image = galsim.ImageD(scene.expected, xmin=0, ymin=0)
    galaxy = galsim.Convolve(
        galsim.Exponential(half_light_radius=1.0, flux=2e4).shear(g1=0.25), galsim.Moffat(beta=3.0, fwhm=3.5)
    )
    for a, b in zip(x, y, strict=True):
        galaxy.drawImage(image, scale=1.0, center=galsim.PositionD(a, b), add_to_image=True)
    done = process(scene)
    apart = np.hypot(x[:, None] - scene.x, y[:, None] - scene.y).min(axis=1)
    near = np.hypot(x[:, None] - done.column("x"), y[:, None] - done.column("y")) < 6.0
    assert np.count_nonzero(apart > 10.0) >= 4
    assert (near.sum(axis=1)[apart > 10.0] == 1).all()


def test_nothing_is_found_where_no_star_is(crowded: Processed) -> None:
    x, y, snr = (crowded.column(name) for name in ("x", "y", "snr"))
    nearest = np.hypot(x[:, None] - crowded.scene.x, y[:, None] - crowded.scene.y).min(axis=1)
    assert np.mean(nearest[snr > 10.0] < 3.0) >= 0.98


def test_bright_unblended_stars_have_their_flux_in_a_crowded_field(crowded: Processed) -> None:
    distance, index = crowded.match()
    bright = unblended(crowded.scene, 8.0) & (distance < 2.0) & (crowded.scene.flux > 1e4)
    ratio = crowded.column("instFlux")[index][bright] / crowded.scene.flux[bright]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)


def test_a_bright_star_on_a_dead_column_is_found_once() -> None:
    scene = make_scene(256, 60, fwhm=4.0, seed=5)
    scene.expected += make_scene(256, 1, fwhm=4.0, sky=0.0, flux=(3e5, 3.1e5), seed=9).expected
    star = make_scene(256, 1, fwhm=4.0, sky=0.0, flux=(3e5, 3.1e5), seed=9)
    raw = scene.raw(bias=0.0)
    raw[:, round(star.x[0])] = 0
    done = process(scene, raw=raw)
    distance = np.hypot(done.column("x") - star.x[0], done.column("y") - star.y[0])
    assert np.count_nonzero(distance < 8.0) == 1
    assert distance.min() < 0.5
    assert done.column("pixelFlags_badCenter")[np.argmin(distance)]


def test_a_large_galaxy_is_not_taken_apart() -> None:
    scene = make_scene(384, 80, fwhm=3.5, seed=3)
    yy, xx = np.mgrid[:384, :384]
    radius = np.hypot((xx - 190.0) / 1.5, yy - 200.0)
    scene.expected += 60.0 * np.exp(-radius / 5.0) * 5.0
    done = process(scene)
    on_it = np.hypot((done.column("x") - 190.0) / 1.5, done.column("y") - 200.0) < 10.0
    stars = np.hypot((scene.x - 190.0) / 1.5, scene.y - 200.0) < 11.0
    assert 1 <= np.count_nonzero(on_it) <= 1 + np.count_nonzero(stars)
