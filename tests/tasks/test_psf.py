from __future__ import annotations

import astropy.modeling.models
import numpy as np
import pytest
import scipy.integrate
from lsst.images import Box
from lsst.images.psfs import GaussianPointSpreadFunction

from spark_butler.tasks.pixels.psf_fit import PsfFit, fit_psf
from spark_butler.tasks.pixels.psf_model import (
    FWHM_PER_SIGMA,
    GAUSSIAN_BETA,
    PsfModel,
    moffat_slopes,
    moffat_stamps,
)

SHAPE = (600, 700)


def make_stars(
    truth: PsfModel, count: int, *, seed: int = 1, sky: float = 200.0, flux: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a sky-subtracted image of bright stars that keep their distance, and their positions."""
    rng = np.random.default_rng(seed)
    step = int(7.0 * truth.fwhm) + 8
    columns, rows = (grid.ravel() for grid in np.meshgrid(np.arange(30, 670, step), np.arange(30, 570, step)))
    chosen = rng.permutation(columns.size)[:count]
    x = columns[chosen] + rng.uniform(-0.5, 0.5, chosen.size)
    y = rows[chosen] + rng.uniform(-0.5, 0.5, chosen.size)
    ix, iy = np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)
    image = np.full((SHAPE[0] + 80, SHAPE[1] + 80), sky)
    flux = 10.0 ** rng.uniform(4.3, 5.3, chosen.size) if flux is None else flux
    for stamp, f, i, j in zip(truth.stamps(x, y, ix, iy, 40), flux, ix, iy, strict=True):
        image[j : j + 81, i : i + 81] += f * stamp
    image = image[40:-40, 40:-40]
    return rng.poisson(image) + rng.normal(0.0, 5.0, image.shape) - sky, x, y


def test_a_stamp_is_the_integral_of_astropys_moffat_over_pixels() -> None:
    psf = PsfModel.constant(2.2, SHAPE, beta=2.7)
    stamp = psf.stamps(np.array([50.3]), np.array([60.1]), np.array([50]), np.array([60]), 4)[0]
    gamma = 0.5 * 2.2 / np.sqrt(2.0 ** (1.0 / 2.7) - 1.0)
    moffat = astropy.modeling.models.Moffat2D(1.7 / (np.pi * gamma**2), 50.3, 60.1, gamma, 2.7)
    for i, j in ((0, 0), (1, 0), (-2, 3)):
        expected, _ = scipy.integrate.dblquad(
            lambda v, u: float(moffat(u, v)), 49.5 + i, 50.5 + i, 59.5 + j, 60.5 + j
        )
        assert stamp[4 + j, 4 + i] == pytest.approx(expected, rel=2e-3)


def test_bright_stars_among_many_faint_ones_determine_a_varying_psf() -> None:
    truth = PsfModel(3.0, 1, np.array([[3.0, 0.001, 0.002], [0.02, 0.0, 0.0], [0.0, 0.0, 0.0]]), SHAPE)
    errors = []
    for seed in (4, 5, 8):
        image, x, y = make_stars(truth, 140, seed=seed, flux=np.repeat([3e5, 5e3], [25, 115]))
        fit = fit_psf(image, np.full(SHAPE, 225.0), np.zeros(SHAPE, dtype=bool), x, y, 2.0)
        assert fit is not None
        widths = [model.parameters(*truth.grid())[0] for model in (fit.model, truth)]
        errors.append(np.std(np.log(widths[0] / widths[1])))
    # The errors of the bright ones' widths are a few thousandths.
    assert np.mean(errors) < 0.0009


def test_slopes_are_the_changes_of_stamps() -> None:
    place = np.array([[0.3], [-0.2], [np.log(2.2)], [0.1], [-0.15]])
    beta, radius = np.array([2.7]), 6

    def stamp(values: np.ndarray) -> np.ndarray:
        dx, dy, width, g1, g2 = values
        return moffat_stamps(dx, dy, np.exp(width), g1, g2, beta, radius)[0]

    slopes = moffat_slopes(place[0], place[1], np.exp(place[2]), place[3], place[4], beta, radius)[0]
    np.testing.assert_array_equal(slopes[0], stamp(place))
    for k in range(5):
        step = np.zeros((5, 1))
        step[k] = 1e-5
        expected = (stamp(place + step) - stamp(place - step)) / 2e-5
        np.testing.assert_allclose(slopes[k + 1], expected, atol=1e-8)


@pytest.mark.parametrize(("fwhm", "beta"), [(1.2, 3.0), (2.0, GAUSSIAN_BETA), (3.5, 2.5), (9.0, 4.0)])
def test_the_stored_psf_is_the_one_that_is_fitted(fwhm: float, beta: float) -> None:
    coefficients = np.array([[fwhm, 1e-4, 3e-4], [0.05, 1e-5, 0.0], [0.1, 0.0, -1e-5]])
    psf = PsfModel(beta, 1, coefficients, SHAPE)
    radius = int(2.0 * fwhm) + 3
    stored = psf.to_piff(Box.factory[0 : SHAPE[0], 0 : SHAPE[1]], 2 * radius + 1)
    ours = psf.stamps(np.array([300.3]), np.array([200.4]), np.array([300]), np.array([200]), radius)[0]
    # GalSim draws it by a Fourier transform.
    drawn = stored.compute_stellar_image(x=300.3, y=200.4)
    assert (drawn.bbox.x.start, drawn.bbox.y.start) == (300 - radius, 200 - radius)
    np.testing.assert_allclose(drawn.array, ours / ours.sum(), atol=2e-3 * drawn.array.max())
    again = PsfModel.from_psf(stored, SHAPE)
    np.testing.assert_allclose(again.coefficients, coefficients, atol=1e-12)
    assert again.beta == beta


def test_a_gaussian_psf_is_taken_as_one() -> None:
    stored = GaussianPointSpreadFunction(1.8, bounds=Box.factory[0:100, 0:100], stamp_size=19)
    assert PsfModel.from_psf(stored, (100, 100)).fwhm == pytest.approx(1.8 * FWHM_PER_SIGMA, rel=0.03)


@pytest.mark.parametrize(
    ("fwhm", "change", "beta"),
    [(1.2, 0.0, 3.0), (1.5, 0.0, GAUSSIAN_BETA), (3.0, 1.5, 3.0), (3.5, 0.0, 2.5), (8.0, 4.0, 4.0)],
)
def test_a_varying_elliptical_psf_is_recovered(fwhm: float, change: float, beta: float) -> None:
    truth = PsfModel(beta, 1, np.array([[fwhm, 0.0, change / 700], [0.1, 0, 0], [0.05, 0, 0]]), SHAPE)
    image, x, y = make_stars(truth, 80)
    masked = np.zeros(SHAPE, dtype=bool)
    fit = fit_psf(image, np.full(SHAPE, 225.0), masked, x, y, truth.sigma)
    assert fit is not None
    assert len(fit.used) > 0.8 * len(x)
    assert fit.model.fwhm == pytest.approx(truth.fwhm, rel=0.02)
    grid = truth.grid()
    for found, expected in zip(fit.model.parameters(*grid), truth.parameters(*grid), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.04 * (fwhm if expected.max() > 1.0 else 1.0))


def test_a_psf_that_does_not_vary_gets_no_terms_that_follow_noise() -> None:
    truth = PsfModel(2.5, 0, np.array([[3.5], [0.05], [0.0]]), SHAPE)
    image, x, y = make_stars(truth, 30)
    fit = fit_psf(image, np.full(SHAPE, 225.0), np.zeros(SHAPE, dtype=bool), x, y, truth.sigma)
    assert fit is not None
    assert fit.model.order == 0


def test_a_psf_that_varies_gets_the_terms_it_needs() -> None:
    truth = PsfModel(3.0, 1, np.array([[3.0, 0.0, 0.6 / 700], [0.05, 0, 0], [0.0, 0, 0]]), SHAPE)
    image, x, y = make_stars(truth, 30)
    fit = fit_psf(image, np.full(SHAPE, 225.0), np.zeros(SHAPE, dtype=bool), x, y, truth.sigma)
    assert fit is not None
    assert fit.model.order == 1


def test_galaxies_do_not_widen_the_psf() -> None:
    truth = PsfModel.constant(3.5, SHAPE, beta=3.0)
    image, x, y = make_stars(truth, 60)
    galaxies, gx, gy = make_stars(PsfModel.constant(4.8, SHAPE, beta=3.0), 40, seed=5)
    both = np.concatenate([image, galaxies], axis=1)
    fit = fit_psf(
        both,
        np.full(both.shape, 225.0),
        np.zeros(both.shape, dtype=bool),
        np.concatenate([x, gx + SHAPE[1]]),
        np.concatenate([y, gy]),
        truth.sigma,
        max_order=0,
    )
    assert fit is not None
    assert fit.model.fwhm == pytest.approx(3.5, rel=0.02)
    assert np.mean(fit.used < len(x)) > 0.95


def test_two_stars_make_no_psf() -> None:
    truth = PsfModel.constant(3.5, SHAPE)
    image, x, y = make_stars(truth, 2)
    assert fit_psf(image, np.full(SHAPE, 225.0), np.zeros(SHAPE, dtype=bool), x, y, truth.sigma) is None


def test_reserved_stars_do_not_change_the_psf_and_galaxies_are_not_among_them() -> None:
    truth = PsfModel.constant(3.4, SHAPE, beta=3.0)
    image, x, y = make_stars(truth, 80)
    reserved = np.arange(len(x)) % 5 == 0
    sky = np.full(SHAPE, 225.0)

    def fit() -> PsfFit:
        result = fit_psf(image, sky, np.zeros(SHAPE, dtype=bool), x, y, 1.6, reserved=reserved)
        assert result is not None
        return result

    first = fit()
    assert not set(first.used) & set(first.reserved)
    assert set(first.reserved) <= set(np.nonzero(reserved)[0])
    assert len(first.reserved) >= 0.8 * np.count_nonzero(reserved)
    # One of them becomes a galaxy.
    changed = first.reserved[0]
    i, j = round(x[changed]), round(y[changed])
    wide = PsfModel.constant(5.0, SHAPE, beta=3.0)
    galaxy = wide.stamps(x[[changed]], y[[changed]], np.array([i]), np.array([j]), 12)[0]
    image[j - 12 : j + 13, i - 12 : i + 13] += 1e5 * galaxy
    second = fit()
    assert changed not in second.reserved
    np.testing.assert_array_equal(second.used, first.used)
    np.testing.assert_allclose(second.model.coefficients, first.model.coefficients, rtol=1e-6, atol=1e-9)
