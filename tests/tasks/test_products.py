"""Pictures and catalogs of process_ccd."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner, Result
from matplotlib.figure import Figure

from spark_butler.cli.main import main
from spark_butler.demo.simulation import read_table
from spark_butler.obs.camera.description import CameraDescription
from spark_butler.products.pictures import draw_detector, draw_focal_plane
from spark_butler.products.science import make_stars
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


def test_the_title_of_a_detector_gives_the_seeing(
    processed: ProcessedNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    visit = processed.simulated.visits[0]
    draw_detector(processed.butler, tmp_path / "none.png", instrument="SimCam", visit=visit, detector=1)
    (text,) = (text.get_text() for text in drawn[0].texts if "FWHM" in text.get_text())
    match = re.search(r"PSF FWHM ([\d.]+) pixels", text)
    assert match is not None
    truth = read_table(processed.simulated.truth)
    (seeing,) = set(truth["fwhm"][truth["visit"] == visit])
    scale = CameraDescription.from_yaml(processed.simulated.camera).detectors[1].pixel_scale
    assert float(match[1]) == pytest.approx(seeing / scale, rel=0.03)


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
        assert {"visit", "detector", "psfFlux", "sizeExtendedness"} <= set(table.colnames)
    again = _call("catalog", processed.repo, processed.output, "--csv", files["csv"])
    assert again.exit_code == 2
    assert "give --overwrite to replace it" in again.stderr
    assert "give --csv FILE" in _call("catalog", processed.repo, processed.output).stderr


def test_the_science_page_has_the_numbers_of_the_run(processed: ProcessedNight, tmp_path: Path) -> None:
    file = tmp_path / "science.html"
    result = _call("science", processed.repo, processed.output, "-o", file, "--format", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"file": str(file)}
    page = file.read_text()
    sources = [processed.butler.get(ref) for ref in processed.butler.query_datasets("source")]
    assert f"<b>{sum(map(len, sources)):,}</b><span>sources</span>" in page
    matched = sum(int(np.count_nonzero(np.asarray(table["refId"]) >= 0)) for table in sources)
    assert f"{matched:,} matched sources" in page
    for visit in processed.simulated.visits:
        assert f"<td>{visit}</td>" in page
    # Focal plane, PSF, astrometry, photometry.
    assert page.count("data:image/png;base64,") == 4
    # A run has no camera, which its chain takes from the inputs.
    run = next(iter(processed.butler.query_datasets("source"))).run
    assert _call("science", processed.repo, run, "-o", file).exit_code == 0
    for arguments, words in (
        ((processed.repo, f"{processed.output}x"), f"did you mean '{processed.output}'"),
        ((processed.repo, "SimCam/defaults"), "visit_summary"),
        ((processed.repo, processed.output, "-o", tmp_path), f"Can't write {tmp_path}"),
    ):
        result = _call("science", *arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_stars_of_turned_detectors_are_drawn_in_the_axes_of_the_focal_plane(
    processed: ProcessedNight,
) -> None:
    camera = processed.butler.get("camera", instrument="SimCam")
    ref = next(iter(processed.butler.query_datasets("source", where="detector = 0")))
    catalog = processed.butler.get(ref)
    # Elongated along the detector's x axis, of which the focal plane's is a quarter turn away.
    catalog["ixxPSF"], catalog["iyyPSF"], catalog["ixyPSF"] = 3.0, 1.0, 0.0
    straight, turned = (
        make_stars(catalog, CameraDescription.from_dict(_turn(camera, angle)), 0) for angle in (0.0, 90.0)
    )
    np.testing.assert_allclose(straight.ellipticity, 0.5, atol=1e-9)
    np.testing.assert_allclose(turned.ellipticity, -0.5, atol=1e-9)
    offset = CameraDescription.from_dict(camera).get_detector(0).offset
    np.testing.assert_allclose(turned.x - offset[0], -(straight.y - offset[1]), atol=1e-6)


def _turn(camera: dict[str, Any], angle: float) -> dict[str, Any]:
    """Return a camera whose first detector is rotated."""
    first, *others = camera["detectors"]
    return {**camera, "detectors": [{**first, "rotation": angle}, *others]}
