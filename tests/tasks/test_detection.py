from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.spatial

from spark_butler.tasks.pixels.detection import Detections, detect_sources, sky_variance
from spark_butler.tasks.pixels.psf_stars import estimate_psf
from tests.tasks.synthetic import SyntheticImage, make_image


def detect(sky: SyntheticImage, masked: np.ndarray | None = None, **options: Any) -> Detections:
    masked = np.zeros(sky.image.shape, dtype=bool) if masked is None else masked
    noise = np.full(sky.image.shape, sky.sky + sky.read_noise**2)
    return detect_sources(sky.image - sky.sky, sky.variance, noise, masked, sky.sigma, **options)


def distances(sky: SyntheticImage, found: Detections) -> np.ndarray:
    """Distance from each true source to the nearest detection."""
    tree = scipy.spatial.cKDTree(np.column_stack([found.x, found.y]))
    return np.asarray(tree.query(np.column_stack([sky.x, sky.y]))[0])


@pytest.mark.parametrize("sigma", [1.2, 1.8, 2.6])
def test_stars_well_above_the_threshold_are_found_once(sigma: float) -> None:
    sky = make_image(size=500, stars=120, sigma=sigma, significance=(10.0, 3000.0))
    found = detect(sky)
    assert (distances(sky, found) < 1.5).mean() > 0.98
    assert len(found) <= len(sky.x) + 2


def test_the_significance_is_calibrated() -> None:
    sky = make_image(size=500, stars=100, significance=(20.0, 100.0))
    found = detect(sky)
    tree = scipy.spatial.cKDTree(np.column_stack([found.x, found.y]))
    _, index = tree.query(np.column_stack([sky.x, sky.y]))
    assert np.median(found.significance[index] / sky.significance()) == pytest.approx(1.0, abs=0.05)


def test_pure_noise_has_hardly_a_detection() -> None:
    sky = make_image(size=500, stars=0)
    assert len(detect(sky)) <= 1


def test_cosmic_rays_that_were_not_masked_are_rejected_as_sharp() -> None:
    sky = make_image(size=400, stars=40, significance=(20.0, 1000.0), sigma=2.0, seed=4)
    pixels = np.random.default_rng(9).integers(10, 390, (30, 2))
    sky.image[pixels[:, 0], pixels[:, 1]] += 1000.0
    kept = detect(sky, reject_sharp=False)
    rejected = detect(sky)
    assert len(kept) - len(rejected) >= 25
    assert (distances(sky, rejected) < 1.5).mean() > 0.95


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("sigma", [0.9, 1.5, 2.5])
def test_a_bad_column_through_a_star_does_not_split_it(sigma: float, width: int) -> None:
    sky = make_image(size=400, stars=25, sigma=sigma, significance=(50.0, 2000.0))
    masked = np.zeros(sky.image.shape, dtype=bool)
    for x in np.rint(sky.x).astype(int):
        masked[:, x : x + width] = True
    found = detect(sky, masked)
    stars, sources = (scipy.spatial.cKDTree(np.column_stack([v.x, v.y])) for v in (sky, found))
    radius = 6.0 * sigma
    alone = np.array([len(group) == 1 for group in stars.query_ball_point(stars.data, 2.0 * radius)])
    assert np.count_nonzero(alone) >= 10
    assert [len(group) for group in sources.query_ball_point(stars.data[alone], radius)] == [1] * alone.sum()


def test_masked_pixels_make_no_source() -> None:
    sky = make_image(size=300, stars=20, significance=(30.0, 300.0))
    masked = np.zeros(sky.image.shape, dtype=bool)
    masked[:, 150:152] = True
    sky.image[:, 150:152] = 30000.0
    found = detect(sky, masked)
    assert not ((found.x > 148.5) & (found.x < 152.5) & (found.significance > 300.0)).any()
    assert len(found) <= len(sky.x) + 1


@pytest.mark.parametrize(("separation", "ratio"), [(5.6, 1.0), (7.5, 0.3)])
def test_a_close_pair_is_two_sources(separation: float, ratio: float) -> None:
    sky = make_image(size=120, stars=0, sigma=2.0)
    yy, xx = np.mgrid[:120, :120]
    for x, flux in ((57.0, 60000.0), (57.0 + separation, 60000.0 * ratio)):
        sky.image += flux / (8.0 * np.pi) * np.exp(-((xx - x) ** 2 + (yy - 60.0) ** 2) / 8.0)
    found = detect(sky)
    assert len(found) == 2
    np.testing.assert_allclose(sorted(found.x), [57.0, 57.0 + separation], atol=0.7)


@pytest.mark.parametrize("response", [0.3, 0.8, 1.0, 1.3])
def test_the_sky_variance_under_a_star_does_not_depend_on_the_flat(response: float) -> None:
    floor = np.full((50, 50), 30.0)
    background = np.full((50, 50), 200.0)
    yy, xx = np.mgrid[:50, :50]
    image = background + 1e5 * np.exp(-((xx - 25.0) ** 2 + (yy - 25.0) ** 2) / 8.0)
    variance = image / response + floor / response**2
    sky = sky_variance(image, variance, background, floor)
    np.testing.assert_allclose(sky, 200.0 / response + 30.0 / response**2, rtol=1e-5)


def test_bright_stars_behind_a_low_flat_are_found_once() -> None:
    sky = make_image(size=500, stars=50, sigma=1.5, significance=(300.0, 3000.0))
    response, floor = 0.8, np.full((500, 500), sky.read_noise**2)
    electrons = np.random.default_rng(5).poisson(np.maximum(sky.image, 0.0) * response)
    image = (electrons / response).astype(np.float32)
    variance = electrons / response**2 + floor / response**2
    noise = sky_variance(image, variance, np.full(image.shape, sky.sky), floor)
    masked = np.zeros(image.shape, dtype=bool)
    found = detect_sources(image - sky.sky, variance, noise, masked, sky.sigma)
    tree = scipy.spatial.cKDTree(np.column_stack([found.x, found.y]))
    assert [len(near) for near in tree.query_ball_point(np.column_stack([sky.x, sky.y]), 8.0)] == [1] * 50


def test_nothing_is_found_where_everything_is_masked() -> None:
    sky = make_image(size=64, stars=1)
    assert len(detect(sky, np.ones(sky.image.shape, dtype=bool))) == 0


@pytest.mark.parametrize("sigma", [1.3, 1.8, 2.8])
def test_the_psf_is_measured_among_galaxies(sigma: float) -> None:
    sky = make_image(size=600, stars=60, galaxies=40, sigma=sigma, significance=(40.0, 2000.0))
    masked = np.zeros(sky.image.shape, dtype=bool)
    found = detect(sky)
    psf = estimate_psf(sky.image - sky.sky, masked, found, 1.8)
    # The pixels widen the image of a star.
    assert psf.sigma == pytest.approx(np.sqrt(sigma**2 + 1.0 / 12.0), rel=0.02)
    assert len(psf.candidates) >= 20


def test_the_psf_of_an_image_without_bright_stars_is_unknown() -> None:
    sky = make_image(size=200, stars=10, significance=(6.0, 12.0))
    psf = estimate_psf(sky.image - sky.sky, np.zeros(sky.image.shape, dtype=bool), detect(sky), sky.sigma)
    assert np.isnan(psf.sigma)
    assert psf.candidates.size == 0


def test_a_trail_is_told_from_stars() -> None:
    sky = make_image(size=500, stars=60, sigma=1.8, significance=(20.0, 500.0))
    yy, xx = np.mgrid[:500, :500]
    distance = (xx - 250) * 0.5 - (yy - 250) * 0.866
    sky.image += (400.0 * np.exp(-0.5 * (distance / 1.6) ** 2)).astype(np.float32)
    found = detect(sky)
    on_trail = np.abs((found.x - 250) * 0.5 - (found.y - 250) * 0.866) < 3.0
    assert np.mean(found.streak[on_trail]) > 0.95
    assert not found.streak[np.abs((found.x - 250) * 0.5 - (found.y - 250) * 0.866) > 30.0].any()
