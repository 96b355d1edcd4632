from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from spark_butler.demo.quicklook import draw_detector, draw_focal_plane
from tests.tasks.processed_night import ProcessedNight

pytestmark = pytest.mark.pipeline


def test_the_focal_plane_shows_both_detectors_side_by_side(processed: ProcessedNight, tmp_path: Path) -> None:
    path = tmp_path / "visit.png"
    draw_focal_plane(processed.butler, path, instrument="SimCam", visit=processed.simulated.visits[0])
    picture = matplotlib.image.imread(path)[..., :3].mean(axis=2)
    assert min(picture.shape) > 400
    # Sky noise on the left and on the right half; the darker background in the gap between them.
    middle = picture[int(0.55 * picture.shape[0])]
    left, right = np.array_split(middle, 2)
    assert left.std() > 0.01
    assert right.std() > 0.01


def test_a_detector_shows_its_sources_in_color(processed: ProcessedNight, tmp_path: Path) -> None:
    path = tmp_path / "detector.png"
    draw_detector(
        processed.butler, path, instrument="SimCam", visit=processed.simulated.visits[0], detector=1
    )
    picture = matplotlib.image.imread(path)[..., :3]
    blue = picture[..., 2] - picture[..., 0]
    assert np.count_nonzero(blue > 0.3) > 1000


def test_a_visit_without_images_is_refused(processed: ProcessedNight, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no visit_image of visit 1 of SimCam"):
        draw_focal_plane(processed.butler, tmp_path / "none.png", instrument="SimCam", visit=1)
