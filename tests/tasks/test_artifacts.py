from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from spark_butler.tasks.pixels.artifacts import find_cosmic_rays, star_contrast
from spark_butler.tasks.pixels.psf_model import FWHM_PER_SIGMA
from spark_butler.tasks.pixels.streaks import find_aligned
from tests.tasks.synthetic import make_image


@pytest.mark.parametrize("sigma", [1.2, 1.8, 2.5])
def test_cosmic_rays_are_found_and_stars_are_spared(sigma: float) -> None:
    sky = make_image(size=400, stars=60, rays=40, sigma=sigma, significance=(10.0, 5000.0))
    found = find_cosmic_rays(sky.image, sky.read_noise)
    assert found[sky.cosmic_rays].mean() > 0.97
    near = scipy.ndimage.binary_dilation(sky.cosmic_rays, np.ones((3, 3)))
    # Sky pixels that are off by more than 4.5 sigma.
    assert np.mean(found & ~near) < 1e-4
    away = [
        not near[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].any()
        for x, y in zip(sky.x, sky.y, strict=True)
    ]
    cores = found[np.rint(sky.y[away]).astype(int), np.rint(sky.x[away]).astype(int)]
    assert not cores.any()


def test_an_image_without_cosmic_rays_has_hardly_any_found() -> None:
    sky = make_image(size=400, stars=80, rays=0, significance=(10.0, 5000.0))
    assert np.mean(find_cosmic_rays(sky.image, sky.read_noise)) < 1e-4


def test_pixels_to_ignore_and_nans_are_never_cosmic_rays() -> None:
    sky = make_image(size=200, stars=5, rays=10)
    image = sky.image.copy()
    image[50, 60] = np.nan
    ignore = sky.cosmic_rays.copy()
    found = find_cosmic_rays(image, sky.read_noise, ignore=ignore)
    assert not found[ignore].any()
    assert not found[50, 60]


def test_a_hit_in_the_first_and_last_pixel_is_found() -> None:
    image = np.random.default_rng(1).normal(100.0, 10.0, (60, 60))
    image[0, 0] += 2000.0
    image[-1, -1] += 2000.0
    found = find_cosmic_rays(image, 0.0)
    assert found[0, 0]
    assert found[-1, -1]


@pytest.mark.parametrize("sigma", [0.5, 0.7, 1.5])
def test_stars_are_spared_and_rays_found_with_the_contrast_of_the_psf(sigma: float) -> None:
    sky = make_image(size=500, stars=100, rays=40, sigma=sigma, significance=(30.0, 3000.0))
    contrast = max(5.0, 2.0 * star_contrast(FWHM_PER_SIGMA * sigma))
    found = find_cosmic_rays(sky.image, sky.read_noise, contrast=contrast)
    cores = found[np.rint(sky.y).astype(int), np.rint(sky.x).astype(int)]
    hit = sky.cosmic_rays[np.rint(sky.y).astype(int), np.rint(sky.x).astype(int)]
    assert np.mean(cores[~hit]) <= 0.05
    assert found[sky.cosmic_rays].mean() > 0.85


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.6, 2.9])
def test_sources_of_a_faint_trail_are_aligned_and_others_are_not(angle: float) -> None:
    rng = np.random.default_rng(6)
    x, y = rng.uniform(0.0, 800.0, (2, 200))
    along, across = rng.uniform(-380.0, 380.0, 30), rng.normal(0.0, 1.0, 30)
    trail_x = 420.0 + along * np.cos(angle) - across * np.sin(angle)
    trail_y = 390.0 + along * np.sin(angle) + across * np.cos(angle)
    aligned = find_aligned(np.append(x, trail_x), np.append(y, trail_y), (800, 800), 1.7)
    assert aligned[200:].mean() > 0.9
    far = np.abs((y - 390.0) * np.cos(angle) - (x - 420.0) * np.sin(angle)) > 15.0
    assert not aligned[:200][far].any()


@pytest.mark.parametrize("width", [0.0, 3.0, 8.0, 25.0, 100.0])
def test_stars_by_chance_and_in_clusters_are_not_aligned(width: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(0.0, 800.0, (2, 300))
        x[:100], y[:100] = rng.normal([[300.0], [500.0]], width, (2, 100)) if width else (x[:100], y[:100])
        assert not find_aligned(x, y, (800, 800), 1.7).any()


@pytest.mark.parametrize("jitter", [0.0, 3.0])
def test_stars_on_a_grid_are_not_aligned(jitter: float) -> None:
    x, y = np.mgrid[25.0:800.0:50.0, 25.0:800.0:50.0].reshape(2, -1)
    x, y = np.stack([x, y]) + np.random.default_rng(1).uniform(-jitter, jitter, (2, x.size))
    assert not find_aligned(x, y, (800, 800), 1.7).any()
