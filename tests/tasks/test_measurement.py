from __future__ import annotations

import numpy as np
import pytest

from spark_butler.tasks.pixels.measurement import aperture_fluxes, isolated_stamps, measure_psf_photometry
from spark_butler.tasks.pixels.psf_model import FWHM_PER_SIGMA, PsfModel
from spark_butler.tasks.pixels.stamps import gather_windows, measure_moments
from tests.tasks.synthetic import make_image


def gaussian(sigma: float) -> PsfModel:
    """Return a round PSF."""
    return PsfModel.constant(FWHM_PER_SIGMA * sigma, (1000, 1000))


PSF = gaussian(1.8)
ROUND = gaussian(2.0)


def stamps_of(psf: PsfModel, dx: np.ndarray, dy: np.ndarray, radius: int) -> np.ndarray:
    """Return stars at offsets from the central pixels of stamps."""
    zero = np.zeros(len(dx), dtype=np.intp)
    return psf.stamps(dx, dy, zero, zero, radius)


def test_positions_and_fluxes_agree_with_truth_within_their_errors() -> None:
    sky = make_image(size=600, stars=200, significance=(10.0, 1000.0), seed=6)
    rng = np.random.default_rng(1)
    start_x, start_y = (values + rng.uniform(-0.5, 0.5, len(sky.x)) for values in (sky.x, sky.y))
    masked = np.zeros(sky.image.shape, dtype=bool)
    result = measure_psf_photometry(sky.image - sky.sky, sky.variance, masked, start_x, start_y, PSF)
    assert result.centroid_ok.all()
    assert result.flux_ok.all()
    for error, sigma in (
        (result.x - sky.x, result.x_err),
        (result.y - sky.y, result.y_err),
        (result.flux - sky.flux, result.flux_err),
    ):
        pull = error / sigma
        assert np.median(np.abs(pull)) == pytest.approx(0.67, abs=0.25)
    bright = sky.significance() > 100.0
    assert np.std((result.x - sky.x)[bright]) < 0.05
    assert np.median((result.flux / sky.flux)[bright]) == pytest.approx(1.0, abs=0.005)


def test_undersampled_stars_are_measured_to_the_noise() -> None:
    size, flux = 400, 5e4
    psf = PsfModel.constant(1.2, (size, size), beta=4.0)
    rng = np.random.default_rng(3)
    axis = np.arange(20, size - 20, 24)
    ix, iy = (values.ravel() for values in np.meshgrid(axis, axis))
    x, y = ix + rng.uniform(-0.5, 0.5, ix.size), iy + rng.uniform(-0.5, 0.5, ix.size)
    light = np.full((size, size), 100.0)
    for i, j, stamp in zip(ix, iy, psf.stamps(x, y, ix, iy, 11), strict=True):
        light[j - 11 : j + 12, i - 11 : i + 12] += flux * stamp
    image = rng.poisson(light).astype(np.float64)
    result = measure_psf_photometry(image - 100.0, image, np.zeros(image.shape, dtype=bool), x, y, psf)
    assert np.std(result.x - x) < 0.01
    assert np.std(result.y - y) < 0.01
    assert np.std(result.flux / flux) < 0.008
    # Errors of positions would look like misfits, and enlarge the errors of fluxes.
    assert 0.8 < np.std((result.flux - flux) / result.flux_err) < 1.2


def test_neighbors_do_not_spoil_each_other() -> None:
    yy, xx = np.mgrid[:80, :80]
    truth = [(38.0, 40.3, 50000.0), (43.0, 39.6, 20000.0), (40.5, 45.0, 8000.0)]
    image = sum(
        flux / (2.0 * np.pi * 4.0) * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 8.0) for x, y, flux in truth
    )
    x, y, flux = (np.array(values) for values in zip(*truth, strict=True))
    result = measure_psf_photometry(
        np.asarray(image),
        np.ones((80, 80)),
        np.zeros((80, 80), dtype=bool),
        x + 0.3,
        y - 0.3,
        # The image is sampled, not integrated over its pixels.
        gaussian(np.sqrt(4.0 - 1.0 / 12.0)),
        passes=8,
    )
    np.testing.assert_allclose(result.flux, flux, rtol=0.01)
    np.testing.assert_allclose(result.x, x, atol=0.05)
    assert (result.blendedness > 0.01).all()


def test_a_nebula_between_stars_does_not_change_their_fluxes() -> None:
    sky = make_image(size=600, stars=60, significance=(50.0, 300.0), seed=6)
    yy, xx = np.mgrid[:600, :600]
    # Filaments of half a sky cell, ten times as bright as the noise.
    nebula = 10.0 * np.sqrt(np.median(sky.variance)) * np.cos(xx / 14.0) ** 2 * (yy < 300)
    masked = np.zeros(sky.image.shape, dtype=bool)
    image = sky.image - sky.sky + nebula
    result = measure_psf_photometry(image, sky.variance + nebula, masked, sky.x, sky.y, PSF)
    ratio = result.flux / sky.flux
    inside = sky.y < 300
    assert np.median(ratio[inside]) == pytest.approx(1.0, abs=0.03)
    assert 1.4826 * np.median(np.abs(ratio[inside] - 1.0)) < 0.06
    assert np.median(ratio[~inside]) == pytest.approx(1.0, abs=0.005)


def test_masked_pixels_do_not_change_the_flux_of_a_perfect_star() -> None:
    star = stamps_of(ROUND, np.array([0.2]), np.array([-0.3]), 20)[0] * 1000.0
    masked = np.zeros(star.shape, dtype=bool)
    masked[:, 21] = True
    star[masked] = 1e5
    position = (np.array([20.2]), np.array([19.7]))
    result = measure_psf_photometry(star, np.ones(star.shape), masked, *position, ROUND, passes=0)
    assert result.flux[0] == pytest.approx(1000.0, rel=1e-4)
    masked[:] = True
    hidden = measure_psf_photometry(star, np.ones(star.shape), masked, *position, ROUND, passes=0)
    assert not hidden.flux_ok[0]


def test_no_sources_are_measured_as_none() -> None:
    nothing = np.zeros(0)
    result = measure_psf_photometry(
        np.ones((30, 30)), np.ones((30, 30)), np.zeros((30, 30), dtype=bool), nothing, nothing, ROUND
    )
    assert len(result.flux) == 0
    assert (result.residual == 1.0).all()


def test_apertures_hold_the_light_that_a_gaussian_has_there() -> None:
    dx, dy = np.array([0.0, 0.37]), np.array([0.0, -0.41])
    stamps = 1000.0 * stamps_of(ROUND, dx, dy, 15)
    apertures = aperture_fluxes(
        stamps, np.full(stamps.shape, 4.0), np.zeros(stamps.shape, dtype=bool), dx, dy, [3.0, 6.0, 12.0]
    )
    for index, radius in enumerate((3.0, 6.0, 12.0)):
        # The pixels widen the star.
        expected = 1000.0 * (1.0 - np.exp(-(radius**2) / (8.0 + 1.0 / 6.0)))
        np.testing.assert_allclose(apertures.flux[:, index], expected, rtol=0.015)
        np.testing.assert_allclose(apertures.flux_err[:, index], 2.0 * radius * np.sqrt(np.pi), rtol=0.08)
    assert not apertures.truncated.any()


def test_an_aperture_over_the_edge_is_truncated() -> None:
    residual = np.zeros((40, 40))
    x, y, flux = np.array([3.0, 20.0]), np.array([20.0, 20.0]), np.array([1.0, 1.0])
    stamps, ix, iy, dx, dy = isolated_stamps(residual, x, y, flux, gaussian(1.5), 8, np.array([8, 8]))
    outside = gather_windows(np.zeros((40, 40), dtype=bool), ix, iy, 8, fill=True)
    apertures = aperture_fluxes(stamps, np.ones(stamps.shape), outside, dx, dy, [5.0])
    assert apertures.truncated[:, 0].tolist() == [True, False]


def test_moments_of_an_elliptical_gaussian_are_its_own() -> None:
    yy, xx = np.mgrid[-15:16, -15:16].astype(float)
    covariance = np.array([[9.0, 2.0], [2.0, 5.0]])
    inverse = np.linalg.inv(covariance)
    stamp = np.exp(-0.5 * (inverse[0, 0] * xx**2 + 2 * inverse[0, 1] * xx * yy + inverse[1, 1] * yy**2))
    moments = measure_moments(stamp[None], np.zeros(1), np.zeros(1), 2.0)
    assert moments.ok[0]
    assert moments.ixx[0] == pytest.approx(9.0, rel=0.01)
    assert moments.iyy[0] == pytest.approx(5.0, rel=0.01)
    assert moments.ixy[0] == pytest.approx(2.0, rel=0.02)
    assert moments.sigma[0] == pytest.approx(np.linalg.det(covariance) ** 0.25, rel=0.01)
