from __future__ import annotations

import numpy as np
import pytest

from spark_butler.tasks.pixels.psf_model import PsfModel
from spark_butler.tasks.sources import measure_sources
from tests.tasks.scene_harness import make_scene, process

SIZE = 512
PSF = PsfModel.constant(6.0, (SIZE, SIZE), beta=3.0)


def test_wings_of_a_star_are_not_taken_for_light_around_it() -> None:
    image = process(make_scene(SIZE, 40)).image
    axis = np.arange(48.0, SIZE - 40.0, 83.0) + 0.3
    x, y = (values.ravel() for values in np.meshgrid(axis, axis))
    ix, iy = np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)
    light = np.zeros((SIZE + 160, SIZE + 160))
    for i, j, stamp in zip(ix, iy, PSF.stamps(x, y, ix, iy, 80), strict=True):
        light[j : j + 161, i : i + 161] += 2e4 * stamp
    image.image.array[...] = light[80:-80, 80:-80]
    image.variance.array[...] = 200.0
    for name in image.mask.schema.names:
        image.mask.set(name, np.zeros((SIZE, SIZE), dtype=bool))
    image.psf = PSF.to_piff(image.bbox, 31)
    # Stars of the PSF itself, on an empty sky, need no correction.
    assert measure_sources(image, x, y, radii=[3.0]).aperture_correction == pytest.approx(1.0, abs=1e-3)
