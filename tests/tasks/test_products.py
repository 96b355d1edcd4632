"""Pictures and catalogs of process_ccd."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner, Result

from spark_butler.cli.main import main
from spark_butler.products.pictures import draw_detector, draw_focal_plane
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


def _call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spark-butler")


def test_show_draws_a_visit_and_a_detector(processed: ProcessedNight, tmp_path: Path) -> None:
    visit = str(processed.simulated.visits[0])
    given = (processed.repo, processed.output, "--visit", visit)
    for more in ((), ("--detector", "1")):
        file = tmp_path / f"{len(more)}.png"
        result = _call("show", *given, *more, "-o", file, "--format", "json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["file"] == str(file)
        assert min(matplotlib.image.imread(file).shape[:2]) > 400
    for arguments, words in (
        ((processed.repo, f"{processed.output}x", "--visit", visit), f"did you mean '{processed.output}'"),
        ((*given[:3], "1"), "There are no datasets of type 'visit_image'"),
        ((*given, "-o", tmp_path / "none" / "x.png"), "No such file or directory"),
    ):
        result = _call("show", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_catalog_joins_the_sources_of_a_run(processed: ProcessedNight, tmp_path: Path) -> None:
    files = {form: tmp_path / f"sources.{form}" for form in ("csv", "parquet", "votable")}
    options = [each for form, file in files.items() for each in (f"--{form}", file)]
    result = _call("catalog", processed.repo, processed.output, *options)
    assert result.exit_code == 0, result.output
    expected = sum(len(processed.butler.get(ref)) for ref in processed.butler.query_datasets("source"))
    for form, name in (("csv", "ascii.csv"), ("parquet", "parquet"), ("votable", "votable")):
        table = Table.read(files[form], format=name)
        assert len(table) == expected
        assert {"visit", "detector", "psfFlux", "extendedness"} <= set(table.colnames)
    again = _call("catalog", processed.repo, processed.output, "--csv", files["csv"])
    assert again.exit_code == 2
    assert "give --overwrite to replace it" in again.stderr
    assert "give --csv FILE" in _call("catalog", processed.repo, processed.output).stderr
