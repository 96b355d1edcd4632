"""Planes of mask bits and noise beside the pixels of raw files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pytest
import yaml
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from spark_butler.errors import UserError
from spark_butler.obs import CameraDescription, CameraDescriptionError, RawFileError
from spark_butler.obs.assembly import RawShapeError
from spark_butler.obs.camera.draft import draft_description
from spark_butler.obs.camera.exposures import read_raw_file
from spark_butler.obs.camera.header_fields import HeaderValueError
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.tasks.isr import IsrTask

GAIN, SIZE = 2.0, (6, 8)
HEADER = {
    **{"INSTRUME": "PlaneCam", "EXPID": 1, "IMGTYPE": "object", "DATE-OBS": "2026-01-01T03:00:00"},
    **{"EXPTIME": 10.0, "FILTER": "r", "RA": 30.0, "DEC": 10.0},
}
PLANES = {
    "mask": {"extension": "DQ", "bits": {"BAD": [0, 4], "SATURATED": [1], "NO_DATA": [2]}},
    "noise": {"extension": "WHT", "form": "weight"},
}


def describe(planes: dict[str, Any], **detector: Any) -> dict[str, Any]:
    """Describe a camera of one amplifier, read out from right to left after two columns of overscan."""
    amplifier = {
        **{"name": "A", "raw_data_section": "[3:10, 1:6]", "raw_overscan_section": "[1:2, 1:6]"},
        **{"section": "[1:8, 1:6]", "mirror": "x", "gain": GAIN, "read_noise": 4.0, "saturation": 60000.0},
    }
    return {
        **{"name": "PlaneCam", "match": {"INSTRUME": "PlaneCam"}, "filters": [{"name": "r", "band": "r"}]},
        **{"image_types": {"science": ["object"], "bias": ["bias"]}, "calibrations": [], "planes": planes},
        "header": {
            **{"exposure_id": "EXPID", "detector": {"constant": 0}, "image_type": "IMGTYPE"},
            **{"date_begin": "DATE-OBS", "exposure_time": "EXPTIME", "physical_filter": "FILTER"},
            **{"ra": "RA", "dec": "DEC"},
        },
        "detectors": [
            {
                **{"id": 0, "name": "d", "raw_nx": 10, "raw_ny": 6, "nx": 8, "ny": 6, "pixel_scale": 0.5},
                "amplifiers": [amplifier],
                **detector,
            }
        ],
    }


def write(path: Path, *planes: tuple[str, np.ndarray], **header: Any) -> Path:
    """Write a raw file of 100 ADU on a level of 1000."""
    raw = np.full((6, 10), 1100, dtype=np.uint16)
    raw[:, :2] = 1000
    hdus = [astropy.io.fits.PrimaryHDU(raw, astropy.io.fits.Header({**HEADER, **header}))]
    hdus += [astropy.io.fits.ImageHDU(pixels, name=name) for name, pixels in planes]
    astropy.io.fits.HDUList(hdus).writeto(path, checksum=True)
    return path


def process(butler: Butler, path: Path, planes: dict[str, Any], **detector: Any) -> Any:
    """Ingest a file, and run isr on it."""
    description = path.with_suffix(".yaml")
    description.write_text(yaml.safe_dump(describe(planes, **detector)))
    camera = register_instrument(butler, str(description))
    ingest_raws(butler, [path], transfer="direct", fail_fast=True)
    raw = butler.get("raw", instrument="PlaneCam", exposure=1, detector=0, collections="PlaneCam/raw/all")
    task = IsrTask(config=IsrTask.ConfigClass(grow_saturation=0))
    return task.run(raw, camera, detector=0).post_isr_image


def test_bits_and_weights_reach_the_image_where_the_amplifier_puts_them(
    butler: Butler, tmp_path: Path
) -> None:
    bits = np.zeros((6, 10), dtype=np.int16)
    # Columns of the raw file; that of the assembled image is 9 less it.  Bit 3 means nothing.
    bits[1, 9], bits[2, 8], bits[3, 7], bits[4, 6], bits[5, 5] = 1, 2, 4, 8, 16
    weight = np.full((6, 10), 0.01, dtype=np.float32)
    weight[0, 4], weight[0, 3] = 0.25, 0.0
    image = process(butler, write(tmp_path / "a.fits", ("DQ", bits), ("WHT", weight)), PLANES)
    found = {name: np.argwhere(image.mask.get(name)).tolist() for name in ("BAD", "SATURATED", "NO_DATA")}
    # A weight of zero is a bad pixel.
    assert found == {"BAD": [[0, 6], [1, 0], [5, 4]], "SATURATED": [[2, 1]], "NO_DATA": [[3, 2]]}
    np.testing.assert_allclose(image.image.array, 100.0 * GAIN)
    # A weight of 0.01 is a variance of 100 ADU^2.
    expected = np.full(SIZE, 100.0 * GAIN**2)
    expected[0, 5] = 4.0 * GAIN**2
    good = ~image.mask.get("BAD")
    np.testing.assert_allclose(image.variance.array[good], expected[good], rtol=1e-6)
    assert np.isfinite(image.variance.array).all()


@pytest.mark.parametrize(("form", "value"), [("variance", 49.0), ("sigma", 7.0), ("weight", 1.0 / 49.0)])
def test_forms_of_noise(butler: Butler, tmp_path: Path, form: str, value: float) -> None:
    noise = np.full(SIZE, value, dtype=np.float32)
    noise[0, 5] = np.nan
    # A plane of the size of the assembled image is not cut out once more.
    path = write(tmp_path / "a.fits", ("ERR", noise))
    image = process(butler, path, {"noise": {"extension": "err", "form": form}})
    assert np.argwhere(image.mask.get("BAD")).tolist() == [[0, 5]]
    good = ~image.mask.get("BAD")
    np.testing.assert_allclose(image.variance.array[good], 49.0 * GAIN**2, rtol=1e-5)


def test_without_bits_everything_that_is_not_0_is_bad(butler: Butler, tmp_path: Path) -> None:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[2, 3], mask[3, 3] = 1, 128
    image = process(butler, write(tmp_path / "a.fits", ("MASK", mask)), {"mask": {"extension": "MASK"}})
    assert np.argwhere(image.mask.get("BAD")).tolist() == [[2, 3], [3, 3]]
    # The variance is that of photons, read-out and digitization.
    np.testing.assert_allclose(image.variance.array, 100.0 * GAIN + 4.0**2 + GAIN**2 / 12.0)


def test_planes_of_a_color_mosaic_are_those_of_its_color(butler: Butler, tmp_path: Path) -> None:
    bits, noise = np.zeros(SIZE, dtype=np.uint8), np.full(SIZE, 9.0, dtype=np.float32)
    # Red is at even rows and columns; one of the greens beside it is on the same row.
    bits[2, 4] = bits[2, 5] = bits[5, 4] = 1
    path = write(tmp_path / "a.fits", ("DQ", bits), ("VAR", noise))
    planes = {"mask": {"extension": "DQ"}, "noise": {"extension": "VAR", "form": "variance"}}
    image = process(butler, path, planes, mosaic={"pattern": "RGGB", "color": "G"})
    assert np.argwhere(image.mask.get("BAD")).tolist() == [[1, 2], [2, 2]]
    # A green pixel is the sum of two.
    np.testing.assert_allclose(image.variance.array, 18.0 * GAIN**2)


def test_a_science_frame_without_its_plane_is_refused_at_ingest(tmp_path: Path) -> None:
    camera = CameraDescription.from_dict(describe(PLANES))
    path = write(tmp_path / "a.fits", ("DQ", np.zeros(SIZE)))
    with pytest.raises(HeaderValueError, match=r"a\.fits: no extension WHT, .*; the file has DQ$"):
        read_raw_file(ResourcePath(path), [camera])
    bias = write(tmp_path / "b.fits", IMGTYPE="bias")
    assert read_raw_file(ResourcePath(bias), [camera]).observation_type == "bias"


@pytest.mark.parametrize(
    ("plane", "error", "expected"),
    [
        (np.zeros((5, 8)), RawShapeError, "extension DQ has 5 rows and 8 columns; the raw image of detector"),
        (None, RawFileError, r"a\.fits: corrupt: the pixels do not agree with DATASUM"),
    ],
)
def test_a_plane_that_can_not_be_used_is_an_error(
    butler: Butler, tmp_path: Path, plane: np.ndarray | None, error: type[UserError], expected: str
) -> None:
    path = write(tmp_path / "a.fits", ("DQ", np.zeros(SIZE, dtype=np.uint8) if plane is None else plane))
    if plane is None:
        content = bytearray(path.read_bytes())
        # The first pixel of the plane, which fills the last block.
        content[-2880] ^= 1
        path.write_bytes(content)
    with pytest.raises(error, match=expected):
        process(butler, path, {"mask": {"extension": "DQ"}})


def test_a_draft_names_the_planes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", ("DQ", np.zeros(SIZE)), ("WHT", np.zeros(SIZE)))
    assert "# Beside the pixels are DQ WHT; to use them," in draft_description([ResourcePath(path)]).text


def test_mistakes_in_the_description_are_named() -> None:
    for planes, expected in (
        ({"mask": {"extension": "BAD"}}, r"planes\.mask\.extension = 'BAD': expected one of BPM, DQ, "),
        ({"mask": {"extension": "DQ", "bits": {"CR": [1]}}}, r"planes\.mask\.bits\.CR.*BAD.*SATURATED"),
        ({"mask": {"extension": "DQ", "bits": {"BAD": [-1]}}}, r"planes\.mask\.bits\.BAD\[0\] = -1: "),
        ({"noise": {"extension": "WHT", "form": "rms"}}, r"planes\.noise\.form = 'rms': .*sigma"),
    ):
        with pytest.raises(CameraDescriptionError, match=expected):
            CameraDescription.from_dict(describe(planes))
