from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spark_butler.tasks.pixels.measurement import PsfPhotometry, measure_psf_photometry
from spark_butler.tasks.pixels.psf_model import FWHM_PER_SIGMA, PsfModel

SIZE = 640
SIGMA = 1.8
SKY = 400.0
PSF = PsfModel.constant(FWHM_PER_SIGMA * SIGMA, (SIZE, SIZE))
NOISE = np.sqrt(SKY * 4.0 * np.pi) * SIGMA

type FloatArray = npt.NDArray[np.float64]


def draw(x: FloatArray, y: FloatArray, flux: FloatArray) -> FloatArray:
    """Return the light of stars."""
    image = np.zeros((SIZE, SIZE))
    ix, iy = np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)
    for i, j, stamp in zip(ix, iy, PSF.stamps(x, y, ix, iy, 12) * flux[:, None, None], strict=True):
        image[j - 12 : j + 13, i - 12 : i + 13] += stamp
    return image


def measure(
    light: FloatArray, x: FloatArray, y: FloatArray, *, level: float = SKY, passes: int = 2
) -> PsfPhotometry:
    """Measure sources on Poisson noise, with the mean sky subtracted."""
    image = np.random.default_rng(5).poisson(SKY + light).astype(np.float32)
    masked = np.zeros(image.shape, dtype=bool)
    return measure_psf_photometry(image - np.float32(level), image, masked, x, y, PSF, passes=passes)


def grid(spacing: int) -> tuple[FloatArray, FloatArray, np.random.Generator]:
    """Return positions apart from one another and from the edges."""
    rng = np.random.default_rng(4)
    axis = np.arange(spacing, SIZE - spacing // 2, spacing).astype(np.float64)
    x, y = (values.ravel() + rng.uniform(-0.5, 0.5, axis.size**2) for values in np.meshgrid(axis, axis))
    return x, y, rng


def width(values: FloatArray) -> float:
    """Return the robust standard deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def test_errors_of_blended_stars_hold_what_their_neighbors_add() -> None:
    x, y, rng = grid(32)
    angle = rng.uniform(0.0, 2.0 * np.pi, x.size)
    apart = 1.0 * PSF.fwhm
    all_x, all_y = (np.concatenate([a, a + apart * f(angle)]) for a, f in ((x, np.cos), (y, np.sin)))
    flux = NOISE * np.concatenate([np.full(x.size, 120.0), np.full(x.size, 40.0)])
    start_x, start_y = (values + rng.normal(0.0, 0.4, values.size) for values in (all_x, all_y))
    result = measure(draw(all_x, all_y, flux), start_x, start_y, passes=6)
    error = result.flux - flux
    for part in (slice(0, x.size), slice(x.size, None)):
        assert 0.85 < width((error / result.flux_err)[part]) < 1.2
        assert 0.8 < width(((result.x - all_x) / result.x_err)[part]) < 1.25
    # Without the neighbors the errors would be too small.
    assert width((error / result.noise_err)[x.size :]) > 1.25


def test_errors_hold_the_sources_that_are_too_faint_to_be_found() -> None:
    x, y, rng = grid(24)
    flux = NOISE * np.exp(rng.uniform(np.log(10.0), np.log(40.0), x.size))
    faint = rng.uniform(14.0, SIZE - 15.0, (2, 3000))
    faint_flux = np.full(3000, 2.0 * NOISE)
    light = draw(x, y, flux) + draw(faint[0], faint[1], faint_flux)
    result = measure(light, x, y, level=SKY + float(faint_flux.sum()) / SIZE**2)
    # The sky's noise alone, without the sources.
    assert width((result.flux - flux) / np.hypot(NOISE, np.sqrt(flux))) > 1.2
    assert 0.85 < width((result.flux - flux) / result.flux_err) < 1.15


def test_an_unseen_companion_makes_the_errors_of_its_star_larger() -> None:
    x, y, _ = grid(32)
    flux = np.full(x.size, 500.0 * NOISE)
    part = x.size // 4
    light = draw(x, y, flux) + draw(x[:part] + 3.5, y[:part], 0.1 * flux[:part])
    result = measure(light, x, y)
    growth = result.flux_err / result.noise_err
    assert np.median(growth[:part]) > 1.5
    assert np.median(growth[part:]) == 1.0
    assert np.mean(growth[part:] > 1.0) < 0.1


def test_flux_errors_include_companions_that_bright_stars_hide() -> None:
    x, y, rng = grid(32)
    faint = rng.uniform(14.0, SIZE - 15.0, (2, 2000))
    faint_flux = NOISE * np.exp(rng.uniform(np.log(10.0), np.log(40.0), 2000))
    flux = np.full(x.size, 800.0 * NOISE)
    near = np.hypot(faint[0][:, None] - x, faint[1][:, None] - y).min(axis=1)
    seen = near > PSF.fwhm
    all_x, all_y = np.append(x, faint[0][seen]), np.append(y, faint[1][seen])
    result = measure(draw(x, y, flux) + draw(faint[0], faint[1], faint_flux), all_x, all_y)
    error = result.flux[: x.size] - flux
    assert width(error / result.noise_err[: x.size]) > 1.35
    assert 0.8 < width(error / result.flux_err[: x.size]) < 1.2
    # Stars without neighbors get no such error.
    alone = measure(draw(x, y, flux), x, y)
    assert np.median(alone.flux_err / alone.noise_err) == 1.0
