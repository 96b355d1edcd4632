from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pytest
import yaml
from astropy.coordinates import SkyCoord

from spark_butler.demo.simulation import make_simcam
from spark_butler.errors import UserError
from spark_butler.obs import CameraDescription, CameraDescriptionError

CAMERAS = Path(__file__).parents[2] / "conf" / "cameras"


def _content() -> dict[str, Any]:
    return copy.deepcopy(make_simcam(size=128, detectors=2).model_dump(mode="json"))


@pytest.mark.parametrize("name", ["simcam", "opd_ixon"])
def test_shipped_cameras_survive_the_camera_dataset(name: str) -> None:
    camera = CameraDescription.from_yaml(CAMERAS / f"{name}.yaml")
    assert (
        CameraDescription.model_validate(yaml.safe_load(yaml.safe_dump(camera.model_dump(mode="json"))))
        == camera
    )


def test_shipped_simcam_is_the_simulated_camera() -> None:
    assert CameraDescription.from_yaml(CAMERAS / "simcam.yaml") == make_simcam()


def _gain(content: dict[str, Any]) -> None:
    content["detectors"][1]["amplifiers"][0]["gain"] = -1.5


def _section(content: dict[str, Any]) -> None:
    content["detectors"][0]["amplifiers"][0]["section"] = "[1:64, 1-128]"


def _overlap(content: dict[str, Any]) -> None:
    content["detectors"][0]["amplifiers"][1]["section"] = "[1:64, 1:128]"


def _outside(content: dict[str, Any]) -> None:
    content["detectors"][0]["raw_nx"] = 150


def _overscan_rows(content: dict[str, Any]) -> None:
    content["detectors"][0]["amplifiers"][0]["raw_overscan_section"] = "[65:96, 2:128]"


def _twice(content: dict[str, Any]) -> None:
    content["detectors"][1]["id"] = 0


def _typo(content: dict[str, Any]) -> None:
    content["detectors"][0]["pixelscale"] = 0.2


def _no_source(content: dict[str, Any]) -> None:
    content["header"]["ra"] = {"unit": "deg"}


def _name(content: dict[str, Any]) -> None:
    content["name"] = "My Camera"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_gain, ["detectors[1].amplifiers[0].gain = -1.5: expected more than 0"]),
        (_section, ["detectors[0].amplifiers[0].section", "[1:64, 1-128]", "[1:512, 1:1024]"]),
        (_overlap, ["detectors[0]", "'B'", "[1:64, 1:128] overlaps"]),
        (_outside, ["detectors[0]", "raw_data_section [129:192, 1:128] leaves the raw image of 150 x 128"]),
        (_overscan_rows, ["raw_overscan_section [65:96, 2:128] must have the rows"]),
        (_twice, ["detector ids are not unique: 0"]),
        (_typo, ["detectors[0].pixelscale = 0.2: there is no such key; did you mean 'pixel_scale'?"]),
        (_no_source, ["header.ra", "either a keyword or a constant"]),
        (_name, ["name = 'My Camera': expected a letter, then letters, digits, _ or -"]),
    ],
)
def test_mistake_is_named_with_its_place(tmp_path: Path, spoil: Any, expected: list[str]) -> None:
    content = _content()
    spoil(content)
    path = tmp_path / "camera.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(CameraDescriptionError) as caught:
        CameraDescription.from_yaml(path)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert str(path) in message
    for text in expected:
        assert text in message
    assert not any(word in message for word in ("Input", "Extra", "Field", "pattern", "^[A-Z"))
    assert "\n" not in message


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(CameraDescriptionError, match=r"camera\.yaml: (not YAML|expected a mapping)"):
        CameraDescription.from_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CameraDescriptionError, match=r"nowhere\.yaml: no such camera description"):
        CameraDescription.from_yaml(tmp_path / "nowhere.yaml")


def _offsets(
    camera: CameraDescription, detector: int, rotation: float, x: float, y: float
) -> tuple[float, float]:
    """Return east and north arcseconds of a pixel from the boresight."""
    center = SkyCoord(150.0 * u.deg, 2.0 * u.deg)
    sky = camera.initial_wcs(detector, 150.0, 2.0, rotation).pixel_to_world(x, y)
    east, north = center.spherical_offsets_to(sky)
    return float(east.arcsec), float(north.arcsec)


def test_projection_places_detectors_about_the_boresight() -> None:
    camera = make_simcam(size=1024)
    center = 511.5
    for detector, x, y in ((0, -524, -524), (1, 524, -524), (2, -524, 524), (3, 524, 524)):
        east, north = _offsets(camera, detector, 0.0, center, center)
        np.testing.assert_allclose((east, north), (-0.2 * x, 0.2 * y), atol=1e-3)
    # The upper row is upside down: its x pixels run east.
    assert _offsets(camera, 3, 0.0, center + 100, center)[0] > _offsets(camera, 3, 0.0, center, center)[0]
    assert _offsets(camera, 0, 0.0, center + 100, center)[0] < _offsets(camera, 0, 0.0, center, center)[0]


def test_rotation_turns_focal_plane_y_from_north_to_east() -> None:
    camera = make_simcam(size=256, detectors=1)
    center = 127.5
    np.testing.assert_allclose(_offsets(camera, 0, 90.0, center, center + 100), (20.0, 0.0), atol=1e-3)
    np.testing.assert_allclose(_offsets(camera, 0, 90.0, center + 100, center), (0.0, 20.0), atol=1e-3)


def test_east_right_mirrors_the_sky() -> None:
    content = make_simcam(size=256, detectors=1).model_dump(mode="json")
    camera = CameraDescription.from_dict({**content, "east": "right"})
    np.testing.assert_allclose(_offsets(camera, 0, 0.0, 227.5, 127.5), (20.0, 0.0), atol=1e-3)
    np.testing.assert_allclose(_offsets(camera, 0, 90.0, 127.5, 227.5), (20.0, 0.0), atol=1e-3)


def test_sky_projection_agrees_with_the_wcs() -> None:
    camera = make_simcam(size=256)
    projection = camera.initial_sky_projection("S10", 320.9, -0.4, 33.0, visit=7)
    wcs = camera.initial_wcs("S10", 320.9, -0.4, 33.0)
    sky = wcs.pixel_to_world(10.0, 200.0)
    xy = projection.sky_to_pixel(sky)
    np.testing.assert_allclose((xy.x, xy.y), (10.0, 200.0), atol=1e-6)


def test_unknown_detector_and_filter_are_named() -> None:
    camera = make_simcam(size=128, detectors=2)
    with pytest.raises(LookupError, match=r"no detector 7; it has 0 \(S00\), 1 \(S01\)"):
        camera.get_detector(7)
    with pytest.raises(LookupError, match="no filter 'z' in its headers; it has r"):
        camera.get_filter("z")


def test_detector_is_found_by_its_id_and_a_text_by_its_name_first() -> None:
    content = make_simcam(size=128, detectors=3).model_dump()
    for detector, name in zip(content["detectors"], ("1", "2", "three"), strict=True):
        detector["name"] = name
    camera = CameraDescription.from_dict(content)
    expected: dict[int | str, int] = {0: 0, 1: 1, "1": 0, "2": 1, "0": 0, "three": 2}
    assert {key: camera.get_detector(key).id for key in expected} == expected


def test_defects_are_read_from_a_file_beside_the_description(tmp_path: Path) -> None:
    content = yaml.safe_load((CAMERAS / "opd_ixon.yaml").read_text())
    content["detectors"][0]["defects"] = "bad.csv"
    path = tmp_path / "camera.yaml"
    path.write_text(yaml.safe_dump(content))
    (tmp_path / "bad.csv").write_text("x1,x2,y1,y2\n5,5,1,512\n100,103,7,9\n")
    defects = CameraDescription.from_yaml(path).get_detector(0).defects
    assert [str(each) for each in defects] == ["[5:5, 1:512]", "[100:103, 7:9]"]
    (tmp_path / "bad.csv").write_text("x1,x2,y1,y2\n5,513,1,512\n")
    with pytest.raises(CameraDescriptionError, match=r"defect \[5:513, 1:512\] leaves the 512 x 512"):
        CameraDescription.from_yaml(path)
    (tmp_path / "bad.csv").unlink()
    with pytest.raises(UserError, match=r"bad\.csv: no such file of defects"):
        CameraDescription.from_yaml(path)
