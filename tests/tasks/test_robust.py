from __future__ import annotations

import numpy as np
import pytest

from spark_butler.tasks.pixels.robust import fit_linear, intrinsic_scatter


@pytest.mark.parametrize("scatter", [0.002, 0.005])
def test_intrinsic_scatter_is_measured_from_the_values_with_small_errors(scatter: float) -> None:
    rng = np.random.default_rng(2)
    errors = np.exp(rng.uniform(np.log(0.0005), np.log(0.05), 400))
    terms = np.column_stack([np.ones(400), rng.uniform(-1.0, 1.0, 400)])
    values = terms @ [1.0, 0.3] + rng.normal(0.0, np.hypot(errors, scatter))
    first = fit_linear(terms, values, errors)
    measured = intrinsic_scatter(values - terms @ first, errors, 2)
    assert measured == pytest.approx(scatter, rel=0.35)


def test_intrinsic_scatter_of_few_values_is_the_largest() -> None:
    assert intrinsic_scatter(np.zeros(9), np.full(9, 0.001), 2) == 0.01


def test_outliers_do_not_change_a_fit() -> None:
    rng = np.random.default_rng(3)
    terms = np.column_stack([np.ones(100), rng.uniform(-1.0, 1.0, 100)])
    values = terms @ [1.0, 0.3] + rng.normal(0.0, 0.01, 100)
    values[::5] += 1.0
    np.testing.assert_allclose(fit_linear(terms, values, np.full(100, 0.01)), [1.0, 0.3], atol=0.01)
