from __future__ import annotations

import astropy.table
import astropy.time
import astropy.units as u
import astropy.wcs
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from lsst.pipe.base import InMemoryDatasetHandle

from spark_butler.tasks.astrometry import AstrometrySolution, project_references, refine_wcs
from spark_butler.tasks.photometry import (
    AB_ZERO_NJY,
    fit_zero_point,
    measure_trend,
)
from spark_butler.tasks.pixels.pattern_match import measure_doubling
from spark_butler.tasks.references import isolated_references, load_references

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


def make_distorted(
    corner: float, *, shift: float, turn: float, scale: float, parity: float, seed: int = 4
) -> tuple[astropy.wcs.WCS, tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Make a field that a third-order distortion moves by ``corner`` pixels at the corners.

    Returns a first projection that is wrong, the arguments of `refine_wcs`, and the true sky positions.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-150, SHAPE[1] + 150, 500), rng.uniform(-150, SHAPE[0] + 150, 500)
    flux = rng.uniform(1e-3, 1.0, 500) ** -1.0
    u, v = (x - 600.0) / 781.0, (y - 500.0) / 781.0
    radial = corner * (u**2 + v**2)
    ra, dec = make_wcs().pixel_to_world_values(x + radial * u, y + radial * v)
    on = (x > 0) & (x < SHAPE[1] - 1) & (y > 0) & (y < SHAPE[0] - 1) & (rng.uniform(size=500) > 0.3)
    first = make_wcs(turn=turn, scale=0.2 * scale)
    first.wcs.cd = np.diag([parity, 1.0]) @ first.wcs.cd
    # The telescope points to the middle of the image.
    first.wcs.crpix = [601.0, 501.0]
    first.wcs.crval = np.array(make_wcs().pixel_to_world_values(600.0, 500.0)) + [0.0, shift / 3600.0]
    first.wcs.set()
    noisy = [values[on] + rng.normal(0, 0.02, on.sum()) for values in (x, y)]
    return first, (*noisy, flux[on] * rng.lognormal(0, 0.1, on.sum()), ra, dec, flux), ra[on], dec[on]


@pytest.mark.parametrize(
    ("corner", "shift", "turn", "scale", "parity"),
    [
        (10.0, 0.0, 0.0, 1.0, 1.0),
        (10.0, 60.0, 10.0, 1.05, 1.0),
        (5.0, -60.0, 140.0, 0.93, -1.0),
        # The telescope points beside the image: by more than half of its height.
        (10.0, 125.0, 0.0, 1.0, 1.0),
        (5.0, -125.0, 10.0, 1.0, 1.0),
    ],
)
def test_distortion_after_a_wrong_start_is_recovered_to_ten_milliarcseconds(
    corner: float, shift: float, turn: float, scale: float, parity: float
) -> None:
    first, field, ra, dec = make_distorted(corner, shift=shift, turn=turn, scale=scale, parity=parity)
    solution = refine_wcs(first, *field, SHAPE, max_offset=700.0, match_radius=2.0)
    assert not solution.failure
    assert len(solution.sources) > 0.95 * len(ra)
    found_ra, found_dec = solution.wcs.all_pix2world(field[0], field[1], 0)
    error = np.hypot((found_ra - ra) * np.cos(np.radians(dec)), found_dec - dec) * 3600.0
    assert np.median(error) < 0.010
    # Stars that the fit has not seen have the noise of the positions.
    assert solution.scatter == pytest.approx(0.02 * 0.2, rel=0.5)
    assert 0.1 < len(solution.reserved) / len(solution.sources) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("east", "north", "turn", "scale", "parity"),
    [(0.4, -0.8, 200.0, 0.92, -1.0), (-0.6, 0.75, 75.0, 1.09, 1.0)],
)
def test_an_image_is_found_in_a_field_of_two_degrees(
    east: float, north: float, turn: float, scale: float, parity: float
) -> None:
    rng = np.random.default_rng(8)
    truth = make_wcs(turn=turn, scale=0.9 * scale)
    truth.wcs.cd = truth.wcs.cd @ np.diag([parity, 1.0])
    truth.wcs.crval, truth.wcs.crpix = [150.0, -45.0], [601.0, 501.0]
    truth.wcs.set()
    # One reference per 10,000 pixels of an image; a tenth of them and of the sources lack in the other list.
    count = round(3.0**2 / (0.025 * scale) ** 2)
    ra = 150.0 + (rng.uniform(-1.5, 1.5, count) - 0.5 * east) / np.cos(np.radians(45.0))
    dec = -45.0 + rng.uniform(-1.5, 1.5, count)
    flux = rng.uniform(1e-3, 1.0, count) ** -1.0
    x, y = truth.all_world2pix(ra, dec, 0)
    on = (x > 0) & (x < SHAPE[1] - 1) & (y > 0) & (y < SHAPE[0] - 1) & (rng.uniform(size=count) > 0.1)
    known = rng.uniform(size=count) > 0.1
    first = make_wcs(scale=0.9)
    first.wcs.crval, first.wcs.crpix = (
        [150.0 + east / np.cos(np.radians(45.0)), -45.0 + north],
        [601.0, 501.0],
    )
    first.wcs.set()
    noisy = [values[on] + rng.normal(0, 0.02, on.sum()) for values in (x, y)]
    field = (*noisy, flux[on] * rng.lognormal(0, 0.1, on.sum()), ra[known], dec[known], flux[known])
    solution = refine_wcs(first, *field, SHAPE, max_offset=4000.0, match_radius=2.0)
    assert not solution.failure
    found_ra, found_dec = solution.wcs.all_pix2world(x[on], y[on], 0)
    error = np.hypot((found_ra - ra[on]) * np.cos(np.radians(dec[on])), found_dec - dec[on]) * 3600.0
    assert np.max(error) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_sources_with_a_second_image_are_counted(share: float) -> None:
    rng = np.random.default_rng(3)
    single = rng.uniform(0.0, 1000.0, (300, 2))
    second = single[: round(share * 300)] + [-20.0, 6.0]
    both = np.concatenate([single, second + rng.normal(0.0, 0.2, second.shape)])
    assert measure_doubling(both, 60.0, 2.0) == pytest.approx(len(second) / len(both), rel=0.05, abs=0.0)


def test_stars_of_clusters_are_not_doubled() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        stars = np.concatenate([rng.uniform(0.0, 1000.0, (200, 2)), rng.normal(500.0, 15.0, (100, 2))])
        assert measure_doubling(stars, 60.0, 2.0) == 0.0


@pytest.mark.parametrize("jitter", [0.0, 3.0])
def test_stars_on_a_grid_are_not_doubled(jitter: float) -> None:
    stars = np.mgrid[25.0:800.0:50.0, 25.0:800.0:50.0].reshape(2, -1).T
    stars += np.random.default_rng(1).uniform(-jitter, jitter, stars.shape)
    assert measure_doubling(stars, 60.0, 2.0) == 0.0


def test_reserved_and_deviant_stars_do_not_change_the_fit() -> None:
    x, y, flux, ra, dec, ref_flux = make_field(count=240)

    def refine() -> AstrometrySolution:
        return refine_wcs(
            make_wcs(shift=1.0), x, y, flux, ra, dec, ref_flux, SHAPE, max_offset=50.0, match_radius=2.0
        )

    first = refine()
    assert len(first.reserved) == pytest.approx(0.2 * len(first.sources), abs=3)
    assert not set(first.reserved) & set(first.fitted)
    assert set(first.reserved) | set(first.fitted) <= set(first.sources)
    # An error is 0.05 pixels.
    moved, deviant = first.reserved[0], first.fitted[0]
    x[moved] += 0.1
    np.testing.assert_allclose(refine().wcs.wcs.crval, first.wcs.wcs.crval, atol=1e-9)
    np.testing.assert_allclose(refine().wcs.wcs.cd, first.wcs.wcs.cd, atol=1e-12)
    x[deviant] += 0.5
    assert deviant not in refine().fitted


def test_a_few_stars_are_all_fitted_and_judged_by_fits_without_them() -> None:
    scatters = []
    for seed in range(8):
        field = make_field(seed, count=60)
        solution = refine_wcs(make_wcs(shift=1.0), *field, SHAPE, max_offset=50.0, match_radius=2.0)
        assert not len(solution.reserved)
        assert len(solution.fitted) > 30
        scatters.append(solution.scatter)
    # The noise of the positions.
    assert np.mean(scatters) == pytest.approx(0.05 * 0.2, rel=0.12)


def test_fewer_than_ten_stars_shift_the_projection_and_change_nothing_else() -> None:
    x, y, flux, ra, dec, ref_flux = (values[:8] for values in make_field())
    first = make_wcs(shift=3.0, turn=0.01)
    solution = refine_wcs(first, x, y, flux, ra, dec, ref_flux, SHAPE, max_offset=50.0, match_radius=2.0)
    assert len(solution.sources) == 8
    assert not len(solution.reserved)
    np.testing.assert_array_equal(solution.wcs.wcs.cd, first.wcs.cd)
    placed = solution.wcs.all_world2pix(ra, dec, 0)
    # The rotation remains.
    assert np.median(placed[0] - x) == pytest.approx(0.0, abs=0.02)
    assert np.median(placed[1] - y) == pytest.approx(0.0, abs=0.02)
    assert solution.offset == pytest.approx(3.0, abs=0.3)


def test_a_projection_without_distortion_gets_none() -> None:
    first, field, _, _ = make_distorted(0.0, shift=3.0, turn=0.0, scale=1.0, parity=1.0)
    assert refine_wcs(first, *field, SHAPE, max_offset=100.0, match_radius=2.0).sip_degree == 0


def test_proper_motions_move_references_to_the_time_of_the_image() -> None:
    year = np.radians(0.5 / 3600.0)
    table = astropy.table.Table(
        {
            "id": [1, 2],
            "coord_ra": np.radians([150.0, 150.0]),
            "coord_dec": np.radians([60.0, 60.0]),
            "r_flux": [1.0, 1.0],
            "epoch": np.full(2, 57388.0),
            "pm_ra": [year, np.nan],
            "pm_dec": [-year, np.nan],
        }
    )
    handle = InMemoryDatasetHandle(table, storageClass="ArrowAstropy")
    later = astropy.time.Time(57388.0 + 10.0 * 365.25, format="mjd", scale="tai")
    moved = load_references([handle], "r_flux", later)
    assert moved is not None
    star = SkyCoord(
        150.0 * u.deg,
        60.0 * u.deg,
        pm_ra_cosdec=500.0 * u.mas / u.yr,
        pm_dec=-500.0 * u.mas / u.yr,
        obstime=astropy.time.Time(57388.0, format="mjd", scale="tai"),
        distance=100.0 * u.pc,
    ).apply_space_motion(new_obstime=later)
    assert moved["ra"][0] == pytest.approx(star.ra.deg, abs=3e-7)
    assert moved["dec"][0] == pytest.approx(star.dec.deg, abs=3e-7)
    assert (moved["ra"][1], moved["dec"][1]) == pytest.approx((150.0, 60.0))


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


def test_reserved_stars_judge_the_zero_point_and_do_not_change_it() -> None:
    rng = np.random.default_rng(3)
    counts = np.exp(rng.uniform(8.0, 12.0, 200))
    reference = counts * 10.0 ** (-0.4 * (28.0 - AB_ZERO_NJY)) * (1.0 + rng.normal(0, 0.02, 200))
    reserved = np.arange(200) % 4 == 0
    first = fit_zero_point(counts, 0.01 * counts, reference, reserved=reserved)
    assert first.reserved.tolist() == np.nonzero(reserved)[0].tolist()
    assert not set(first.used) & set(first.reserved)
    assert first.scatter == pytest.approx(0.0217, rel=0.3)
    assert first.offset == pytest.approx(0.0, abs=0.01)
    # With brighter references, the calibrated magnitudes of the reserved stars are too large.
    reference[reserved] *= 10.0 ** (0.4 * 0.3)
    second = fit_zero_point(counts, 0.01 * counts, reference, reserved=reserved)
    assert second.magnitude == first.magnitude
    assert second.used.tolist() == first.used.tolist()
    assert second.offset == pytest.approx(first.offset + 0.3)
    assert second.scatter > 0.3


def test_a_reference_with_light_beside_it_is_not_isolated() -> None:
    wcs = make_wcs()
    x, y = np.array([300.0, 305.0, 600.0, 604.0, 900.0]), np.full(5, 400.0)
    ra, dec = wcs.pixel_to_world_values(x, y)
    table = astropy.table.Table({"ra": ra, "dec": dec, "flux": [100.0, 20.0, 100.0, 0.5, 100.0]})
    isolated = isolated_references(wcs, table, np.array([0, 2, 4]), radius=8.0)
    assert isolated.tolist() == [False, True, True]
    assert isolated_references(wcs, table, np.array([0]), radius=3.0).tolist() == [True]


def test_faint_stars_do_not_shift_the_zero_point_of_bright_ones() -> None:
    rng = np.random.default_rng(3)
    counts = np.concatenate([np.full(40, 1e6), np.full(100, 1e3)])
    error = np.where(counts > 1e5, 0.002, 0.05) * counts
    reference = counts * 10.0 ** (-0.4 * (28.0 - AB_ZERO_NJY))
    measured = counts + error * rng.normal(size=140)
    # Light of unseen neighbors.
    measured[40:] *= 1.04
    result = fit_zero_point(measured, error, reference)
    assert result.magnitude == pytest.approx(28.0, abs=0.004)
    assert result.error < 0.004


def test_a_trend_of_the_zero_point_is_measured_in_spite_of_outliers() -> None:
    rng = np.random.default_rng(5)
    positions = rng.uniform(0.0, 1000.0, (200, 2))
    flux = rng.uniform(1e4, 1e5, 200)
    for slope in (0.0, 0.1, -0.3):
        magnitudes = slope * positions[:, 0] / 1000.0 + rng.normal(0.0, 0.02, 200)
        magnitudes[:20] += rng.uniform(0.2, 1.0, 20)
        reference = flux * 10.0 ** (-0.4 * magnitudes)
        trend = measure_trend(positions, flux, 1e-3 * flux, reference, (1000, 1000))
        # The outer twentieths at either end don't count.
        assert trend == pytest.approx(0.9 * abs(slope), rel=0.15, abs=0.0)


def test_few_stars_show_no_trend() -> None:
    flux = np.full(19, 1e4)
    positions = np.column_stack([np.linspace(0.0, 1000.0, 19), np.linspace(0.0, 1000.0, 19) % 333.0])
    assert np.isnan(measure_trend(positions, flux, 0.01 * flux, flux, (1000, 1000)))


def test_without_stars_there_is_no_zero_point() -> None:
    one = np.ones(2)
    result = fit_zero_point(one, one, one, min_stars=3)
    assert np.isnan(result.magnitude)
    assert np.isnan(result.njy_per_count)
    assert not result.used.size
