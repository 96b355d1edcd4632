from __future__ import annotations

import numpy as np
import pytest
from lsst.images import Box

from spark_butler.tasks.pixels.background import NoBackgroundError, estimate_background
from tests.tasks.synthetic import make_image


def test_a_sloping_sky_is_recovered_under_stars() -> None:
    sky = make_image(size=400, stars=100, gradient=0.3, significance=(10.0, 2000.0))
    mesh = estimate_background(sky.image, np.zeros(sky.image.shape, dtype=bool), cell=50)
    model = mesh.as_field(Box.factory[0:400, 0:400]).render().array
    truth = sky.sky * (1.0 + 0.3 * (np.arange(400)[None, :] / 400 - 0.5))
    assert np.abs(model - truth).max() < 0.03 * sky.sky
    assert np.abs((model - truth).mean()) < 0.005 * sky.sky
    assert mesh.noise == pytest.approx(np.sqrt(sky.sky + sky.read_noise**2), rel=0.05)


def test_sizes_that_cells_do_not_divide_are_covered_to_the_edges() -> None:
    image = np.random.default_rng(2).normal(50.0, 2.0, (101, 233))
    mesh = estimate_background(image, np.zeros(image.shape, dtype=bool), cell=64)
    model = mesh.as_field(Box.factory[0:101, 0:233]).render().array
    assert model.shape == image.shape
    np.testing.assert_allclose(model, 50.0, atol=0.3)


def test_a_masked_cell_is_filled_from_its_neighbors() -> None:
    image = np.random.default_rng(3).normal(50.0, 2.0, (200, 200))
    masked = np.zeros(image.shape, dtype=bool)
    masked[:50, :50] = True
    image[masked] = 1e6
    mesh = estimate_background(image, masked, cell=50)
    assert np.abs(mesh.level - 50.0).max() < 0.5


def test_an_entirely_masked_image_says_why_it_has_no_background() -> None:
    with pytest.raises(NoBackgroundError, match=r"0.0% of the image is neither masked nor in a source"):
        estimate_background(np.zeros((100, 100)), np.ones((100, 100), dtype=bool))
