from __future__ import annotations

import astropy.wcs
import numpy as np
import pytest

from spark_butler.tasks.astrometry import project_references, refine_wcs
from spark_butler.tasks.photometry import AB_ZERO_NJY, fit_zero_point

SHAPE = (1000, 1200)


def make_wcs(*, shift: float = 0.0, turn: float = 0.0, scale: float = 0.2) -> astropy.wcs.WCS:
    """Make a TAN projection, off by ``shift`` arcseconds in declination and ``turn`` degrees."""
    angle = np.radians(30.0 + turn)
    wcs = astropy.wcs.WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, -45.0 + shift / 3600.0]
    wcs.wcs.crpix = [-300.0, 1500.0]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = scale / 3600.0 * np.diag([-1.0, 1.0]) @ rotation
    wcs.wcs.set()
    return wcs


def make_field(seed: int = 1, count: int = 150) -> tuple[np.ndarray, ...]:
    """Sources with noise of 0.05 pixels, and the references of two thirds of them with some others."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SHAPE[1], count), rng.uniform(0, SHAPE[0], count)
    flux = np.exp(rng.uniform(3.0, 9.0, count))
    ra, dec = make_wcs().pixel_to_world_values(x[: 2 * count // 3], y[: 2 * count // 3])
    other_ra, other_dec = make_wcs().pixel_to_world_values(
        rng.uniform(-200, SHAPE[1] + 200, count // 2), rng.uniform(-200, SHAPE[0] + 200, count // 2)
    )
    x, y = x + rng.normal(0, 0.05, count), y + rng.normal(0, 0.05, count)
    ref_flux = np.concatenate([flux[: 2 * count // 3], np.exp(rng.uniform(3.0, 9.0, count // 2))])
    return x, y, flux, np.concatenate([ra, other_ra]), np.concatenate([dec, other_dec]), ref_flux


def test_offset_rotation_and_scale_are_recovered() -> None:
    x, y, flux, ra, dec, ref_flux = make_field()
    first = make_wcs(shift=4.0, turn=0.02, scale=0.20004)
    solution = refine_wcs(first, x, y, flux, ra, dec, ref_flux, SHAPE, max_offset=100.0, match_radius=2.0)
    assert not solution.failure
    assert len(solution.sources) >= 95
    assert np.mean(solution.sources == solution.references) > 0.97
    grid_x, grid_y = (values.ravel() for values in np.meshgrid([0.0, 600.0, 1199.0], [0.0, 500.0, 999.0]))
    true_ra, true_dec = make_wcs().pixel_to_world_values(grid_x, grid_y)
    back_x, back_y = solution.wcs.world_to_pixel_values(true_ra, true_dec)
    assert np.hypot(back_x - grid_x, back_y - grid_y).max() < 0.05
    assert solution.scatter == pytest.approx(0.05 * 0.2, rel=0.3)
    assert solution.offset == pytest.approx(4.0, rel=0.2)


def test_an_unrelated_catalog_gives_no_solution_rather_than_a_wrong_one() -> None:
    for seed in range(10):
        x, y, flux, *_ = make_field(seed)
        *_, ra, dec, ref_flux = make_field(seed + 100)
        first = make_wcs()
        solution = refine_wcs(first, x, y, flux, ra, dec, ref_flux, SHAPE, max_offset=100.0, match_radius=2.0)
        assert "chance" in solution.failure
        assert solution.wcs is first
        assert solution.sources.size == 0


def test_too_few_references_are_reported_with_their_number() -> None:
    x, y, flux, ra, dec, ref_flux = make_field()
    few = slice(0, 3)
    solution = refine_wcs(
        make_wcs(), x, y, flux, ra[few], dec[few], ref_flux[few], SHAPE, max_offset=50.0, match_radius=2.0
    )
    assert solution.failure.startswith("3 references and 150 usable sources")


def test_references_behind_the_observer_are_not_on_the_image() -> None:
    index, _, _ = project_references(make_wcs(), np.array([330.0]), np.array([45.0]), SHAPE, 1e6)
    assert index.size == 0


def test_the_zero_point_ignores_outliers() -> None:
    rng = np.random.default_rng(3)
    true_zero_point = 28.0
    counts = np.exp(rng.uniform(6.0, 12.0, 100))
    reference = counts * 10.0 ** (-0.4 * (true_zero_point - AB_ZERO_NJY)) * (1.0 + rng.normal(0, 0.02, 100))
    reference[:8] *= 3.0
    result = fit_zero_point(counts, 0.01 * counts, reference)
    assert result.magnitude == pytest.approx(true_zero_point, abs=0.01)
    assert result.scatter == pytest.approx(0.0217, rel=0.3)
    assert not np.isin(np.arange(8), result.used).any()
    assert (counts * result.njy_per_count)[50] == pytest.approx(reference[50], rel=0.1)


def test_without_stars_there_is_no_zero_point() -> None:
    one = np.ones(2)
    result = fit_zero_point(one, one, one, min_stars=3)
    assert np.isnan(result.magnitude)
    assert np.isnan(result.njy_per_count)
