"""Detectors as single frames have them: numbers from headers, binned pixels, one color of a mosaic."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.wcs
import numpy as np
import pytest
import yaml
from lsst.daf.butler import Butler
from lsst.images import Image
from lsst.resources import ResourcePath

from spark_butler.obs import CameraDescription, CameraDescriptionError
from spark_butler.obs.assembly import MosaicPatternError, assemble, noise_floor
from spark_butler.obs.camera.exposures import read_raw_file
from spark_butler.obs.camera.frame_detector import describe_frame
from spark_butler.obs.camera.header_fields import HeaderValueError
from spark_butler.obs.camera.header_wcs import header_wcs
from spark_butler.obs.camera.raw_fits import read_raw_header
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.obs.repository import get_description
from spark_butler.tasks.frames import camera_of_image, make_detector
from spark_butler.tasks.isr import IsrTask

FIELDS = "exposure_id detector image_type date_begin exposure_time physical_filter ra dec".split()


def make_camera(
    nx: int,
    ny: int,
    *,
    header: dict[str, Any] | None = None,
    detector: dict[str, Any] | None = None,
    **amp: Any,
) -> CameraDescription:
    """Return a camera of one amplifier with an overscan of eight columns on the right."""
    amplifier = {
        "name": "A",
        "raw_data_section": f"[1:{nx}, 1:{ny}]",
        "raw_overscan_section": f"[{nx + 1}:{nx + 8}, 1:{ny}]",
        "section": f"[1:{nx}, 1:{ny}]",
        **{"gain": 2.0, "read_noise": 5.0, "saturation": 6e4, **amp},
    }
    constants: dict[str, Any] = {name: {"constant": 1} for name in FIELDS}
    constants |= {"detector": {"constant": 0}, "date_begin": {"constant": "2026-01-01T00:00:00"}}
    return CameraDescription.from_dict(
        {
            "name": "Cam",
            "filters": [{"name": "1", "band": "r"}],
            "image_types": {"science": ["1"]},
            "calibrations": [],
            "header": {**constants, **(header or {})},
            "detectors": [
                {
                    **{"id": 0, "name": "d", "raw_nx": nx + 8, "raw_ny": ny, "nx": nx, "ny": ny},
                    **{"pixel_scale": 0.5, "offset": [100.0, -40.0], "amplifiers": [amplifier]},
                    **(detector or {}),
                }
            ],
        }
    )


def test_gain_noise_and_saturation_come_from_a_frames_header() -> None:
    camera = make_camera(
        40,
        20,
        gain={"keyword": "GAIN", "decimal_comma": True},
        read_noise={"keyword": "RON", "factor": 0.1},
        saturation={"keyword": "SATLEVEL", "default": 30000},
    )
    frame = describe_frame(camera, 0, {"GAIN": "1,41", "RON": 72})
    (amplifier,) = frame.amplifiers
    assert [amplifier.gain, amplifier.read_noise, amplifier.saturation] == pytest.approx([1.41, 7.2, 3e4])
    raw = np.full((20, 48), 1000, dtype=np.uint16)
    raw[:, 40:] = 500
    raw[3, 7] = 40000
    assembled = assemble(raw, frame)
    assert (assembled.gain == np.float32(1.41)).all()
    assert np.argwhere(assembled.saturated).tolist() == [[3, 7]]
    again = CameraDescription.from_dict(yaml.safe_load(yaml.safe_dump(camera.model_dump(mode="json"))))
    assert again == camera
    with pytest.raises(ValueError, match="call describe_frame"):
        assemble(raw, camera.get_detector(0))


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        ({}, "gain of amplifier A: GAIN is missing or blank in the header; give it a default"),
        ({"GAIN": 0}, "gain of amplifier A: GAIN gives 0 electrons per ADU, which is not within 0.0001"),
        ({"GAIN": -2.0}, "GAIN gives -2 electrons per ADU"),
        ({"GAIN": "high"}, "GAIN = 'high' is not a number"),
        ({"GAIN": "nan"}, "GAIN = 'nan' is not a finite number"),
        ({"GAIN": 1.0, "CCDSUM": "2 1"}, "CCDSUM = '2 1' makes pixels that are not square"),
        ({"GAIN": 1.0, "CCDSUM": "many"}, "CCDSUM = 'many' is not a number of pixels, such as 2"),
        ({"GAIN": 1.0, "CCDSUM": "2 2", "NAXIS1": 48}, "the image has 48 x 20 pixels; .* are 24 x 10"),
        (
            {"GAIN": 1.0, "BAYERPAT": "GRBG"},
            r"add 'mosaic: \{pattern: GRBG, color: G\}' .*, or 'monochrome: true'",
        ),
    ],
)
def test_frame_with_impossible_value_is_refused_by_its_name(
    tmp_path: Path, cards: dict[str, Any], reason: str
) -> None:
    camera = make_camera(40, 20, gain="GAIN", header={"binning": "CCDSUM"})
    hdu = astropy.io.fits.PrimaryHDU(np.zeros((20, 48), dtype=np.uint16))
    hdu.header.update({key: value for key, value in cards.items() if key != "NAXIS1"})
    hdu.writeto(tmp_path / "one.fits")
    with pytest.raises(HeaderValueError, match=rf"one\.fits: .*{reason}"):
        read_raw_file(ResourcePath(tmp_path / "one.fits"), [camera])


def test_one_color_that_was_extracted_before_is_read_in_spite_of_its_header(tmp_path: Path) -> None:
    pixels = np.arange(960, dtype=np.uint16).reshape(20, 48)
    hdu = astropy.io.fits.PrimaryHDU(pixels)
    hdu.header["BAYERPAT"] = "RGGB"
    hdu.writeto(tmp_path / "one.fits")
    camera = make_camera(40, 20, detector={"monochrome": True})
    frame = describe_frame(camera, 0, read_raw_header(tmp_path / "one.fits"))
    assert assemble(pixels, frame).image.shape == (20, 40)
    with pytest.raises(CameraDescriptionError, match="with a mosaic, the pixels are not monochrome"):
        make_camera(40, 20, detector={"monochrome": True, "mosaic": {"pattern": "RGGB", "color": "G"}})


def test_described_bias_level_is_subtracted_where_there_is_no_overscan() -> None:
    described: dict[str, Any] = {"raw_overscan_section": None, "bias_level": 800.0, "saturation": 4000.0}
    raw = np.full((20, 48), 830, dtype=np.uint16)
    raw[3, 7] = 4000
    plain = assemble(raw, make_camera(40, 20, **described).get_detector(0))
    assert plain.image[0, 0] == 30.0
    assert np.argwhere(plain.saturated).tolist() == [[3, 7]]
    color = {"mosaic": {"pattern": "RGGB", "color": "G"}}
    green = assemble(raw, make_camera(40, 20, detector=color, **described).get_detector(0))
    assert green.image[0, 0] == 60.0
    with pytest.raises(CameraDescriptionError, match="bias_level is 800, but raw_overscan_section measures"):
        make_camera(40, 20, bias_level=800.0)


def test_numbers_of_each_extension_are_told_apart(tmp_path: Path) -> None:
    whole = make_camera(8, 6).model_dump(mode="json")
    template = {**whole["detectors"][0]["amplifiers"][0], "raw_overscan_section": None}
    amplifiers = [
        {
            **template,
            **{"name": str(n), "gain": f"GAIN@{n}", "raw_data_section": f"[{8 * n - 7}:{8 * n}, 1:6]"},
            "section": f"[{8 * n - 7}:{8 * n}, 1:6]",
        }
        for n in (1, 2)
    ]
    sizes = {"raw_nx": 16, "nx": 16, "raw_ny": 6, "ny": 6}
    whole["detectors"] = [{**whole["detectors"][0], **sizes, "amplifiers": amplifiers}]
    camera = CameraDescription.from_dict(whole)
    hdus: list[Any] = [astropy.io.fits.PrimaryHDU()]
    for gain in (1.25, 1.75):
        hdus.append(astropy.io.fits.ImageHDU(np.zeros((6, 8), dtype=np.int16)))
        hdus[-1].header["GAIN"] = gain
    astropy.io.fits.HDUList(hdus).writeto(tmp_path / "two.fits")
    file = ResourcePath(tmp_path / "two.fits")
    assert read_raw_file(file, [camera]).detector == 0
    frame = describe_frame(camera, 0, read_raw_header(file))
    assert [amplifier.gain for amplifier in frame.amplifiers] == [1.25, 1.75]


@pytest.mark.parametrize("card", [2, "2 2", "2x2", "2", 2.0, "2,2"])
def test_binned_frames_are_assembled_by_the_unbinned_description(card: object) -> None:
    camera = make_camera(
        40, 20, header={"binning": "CCDSUM"}, detector={"defects": ["[5:5, 1:20]", "[40:40, 20:20]"]}
    )
    frame = describe_frame(camera, 0, {"CCDSUM": card})
    assert (frame.raw_nx, frame.raw_ny, frame.nx, frame.ny) == (24, 10, 20, 10)
    assert (frame.pixel_scale, frame.offset) == (1.0, (50.0, -20.0))
    assert [str(defect) for defect in frame.defects] == ["[3:3, 1:10]", "[20:20, 10:10]"]
    truth = np.arange(200.0).reshape(10, 20)
    raw = np.hstack([truth + 500.0, np.full((10, 4), 500.0)])
    np.testing.assert_allclose(assemble(raw, frame).image, truth, atol=1e-3)
    # The same star, at the same place of the sky.
    whole, binned = (each.initial_wcs(0, 30.0, 10.0) for each in (camera, camera.with_detector(frame)))
    # The center of binned pixel n is between the unbinned pixels 2 n and 2 n + 1.
    np.testing.assert_allclose(
        binned.all_pix2world(7.0, 3.0, 0), whole.all_pix2world(14.5, 6.5, 0), rtol=0, atol=1e-9
    )


def test_binning_that_cuts_an_amplifier_is_refused() -> None:
    camera = make_camera(42, 21, header={"binning": "CCDSUM"})
    assert describe_frame(camera, 0, {"CCDSUM": "4 4"}).nx == 10
    two = make_camera(42, 20, header={"binning": "CCDSUM"}).model_dump(mode="json")
    first = {**two["detectors"][0]["amplifiers"][0], "raw_overscan_section": None}
    parts = [("A", 1, 21), ("B", 22, 42)]
    two["detectors"][0]["amplifiers"] = [
        {**first, "name": n, "section": f"[{a}:{b}, 1:20]", "raw_data_section": f"[{a}:{b}, 1:20]"}
        for n, a, b in parts
    ]
    with pytest.raises(HeaderValueError, match="binning = 2 does not fit the sections of detector d"):
        describe_frame(CameraDescription.from_dict(two), 0, {"CCDSUM": "2 2"})


COLORS = {"R": 100.0, "G": 200.0, "B": 300.0}


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
@pytest.mark.parametrize("color", ["R", "G", "B"])
def test_one_color_of_a_mosaic_is_extracted_at_half_the_size(pattern: str, color: str) -> None:
    camera = make_camera(40, 20, detector={"mosaic": {"pattern": pattern, "color": color}})
    cell = np.array([COLORS[letter] for letter in pattern]).reshape(2, 2)
    raw = np.hstack([np.tile(cell, (10, 20)) + 1000.0, np.full((20, 8), 1000.0)])
    assembled = assemble(raw, describe_frame(camera, 0, {"BAYERPAT": pattern}))
    # Two greens are added, with the noise of both.
    n = 2 if color == "G" else 1
    assert assembled.image.shape == (10, 20)
    np.testing.assert_allclose(assembled.image, n * COLORS[color], atol=1e-3)
    assert assembled.detector.amplifiers[0].read_noise == pytest.approx(5.0 * np.sqrt(n))
    assert (assembled.gain == 2.0).all()
    assert assembled.detector.pixel_scale == 1.0
    assert noise_floor(assembled.detector)[0, 0] == pytest.approx(n * 25.0 + 4.0 / 12.0 * n, rel=0.02)


def test_projection_of_a_mosaics_header_follows_the_color() -> None:
    cards = {
        **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 30.0, "CRVAL2": 10.0, "CRPIX1": 11.0},
        **{"CRPIX2": 7.0, "CD1_1": -0.5 / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.5 / 3600},
    }
    whole = astropy.wcs.WCS(astropy.io.fits.Header(cards))
    for color, place in (("R", (0.0, 0.0)), ("B", (1.0, 1.0)), ("G", (0.5, 0.5))):
        camera = make_camera(40, 20, detector={"mosaic": {"pattern": "RGGB", "color": color}})
        wcs = header_wcs(cards, describe_frame(camera, 0, cards))
        assert wcs is not None
        np.testing.assert_allclose(
            wcs.all_pix2world(6.0, 4.0, 0),
            whole.all_pix2world(12.0 + place[0], 8.0 + place[1], 0),
            rtol=0,
            atol=1e-9,
        )


def test_mosaic_whose_amplifiers_cut_cells_is_refused() -> None:
    with pytest.raises(CameraDescriptionError, match="begin at an odd pixel and end at an even one"):
        make_camera(41, 20, detector={"mosaic": {"pattern": "RGGB", "color": "R"}})


def test_later_tasks_get_the_frames_detector_with_the_image() -> None:
    camera = make_camera(40, 20, gain="GAIN", header={"binning": "CCDSUM"})
    raw = Image(np.full((10, 24), 500, dtype=np.uint16), metadata={"GAIN": 1.7, "CCDSUM": "2 2"})
    post = IsrTask(config=IsrTask.ConfigClass()).run(raw, camera, detector=0, boresight=(30.0, 10.0, 0.0))
    found = camera_of_image(camera, post.post_isr_image.metadata)
    detector = make_detector(found, 0)
    nominal = detector.amplifiers[0].nominal_calibrations
    assert nominal is not None
    assert (detector.bbox.shape, nominal.gain) == ((10, 20), 1.7)
    assert found.get_detector(0).pixel_scale == 1.0


def test_real_color_frame_is_refused_without_a_mosaic_and_read_with_one(
    butler: Butler, tmp_path: Path
) -> None:
    root = Path(os.environ.get("SPARK_BUTLER_DATA", Path(__file__).parents[3] / "shared" / "data"))
    frame = root.parent / "cases" / "science" / "inputs" / "panoptes_rggb.fits.fz"
    if not frame.exists():
        pytest.skip("the frame of a color camera is not beside $SPARK_BUTLER_DATA")
    content = yaml.safe_load((frame.parents[1] / "panoptes.yaml").read_text())
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(content))
    register_instrument(butler, plain)
    (reason,) = ingest_raws(butler, [frame], transfer="direct").failures.values()
    assert "FILTER = 'RGGB': the pixels are a color mosaic" in reason
    # The header's pattern is the camera's; this image begins at another pixel of a cell.
    for name in ("RGGB", "GRBG"):
        content["detectors"][0]["mosaic"] = {"pattern": name, "color": "G"}
        content["name"] = name
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        register_instrument(butler, path)
        assert len(ingest_raws(butler, [frame], instrument=name, transfer="direct").ingested) == 1
    raw = butler.get(butler.query_datasets("raw", "GRBG/raw/all")[0])
    with pytest.raises(MosaicPatternError, match=r"pattern = RGGB .* try GRBG or GBRG"):
        assemble(raw.array, describe_frame(get_description(butler, "RGGB"), 0, raw.metadata))
    image = assemble(raw.array, describe_frame(get_description(butler, "GRBG"), 0, raw.metadata)).image
    pixels = astropy.io.fits.getdata(frame).astype(float)
    np.testing.assert_array_equal(image, pixels[::2, ::2] + pixels[1::2, 1::2])


def test_real_frames_take_their_gain_from_the_header(
    butler: Butler, cameras: Path, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = real_data("opd_ngc346")
    content = yaml.safe_load((cameras / "opd_ixon.yaml").read_text())
    (detector,) = content["detectors"]
    # Unbinned, as the chip is.
    detector |= {"raw_nx": 1024, "raw_ny": 1024, "nx": 1024, "ny": 1024, "pixel_scale": 0.34}
    section = "[1:1024, 1:1024]"
    (amplifier,) = detector["amplifiers"]
    amplifier |= {"gain": "GAIN", "read_noise": "RDNOISE", "raw_data_section": section, "section": section}
    content["header"]["binning"] = {"keyword": ["HBIN", "VBIN"], "join": " "}
    path = tmp_path / "camera.yaml"
    path.write_text(yaml.safe_dump(content))
    camera = register_instrument(butler, path)
    result = ingest_raws(butler, [folder / "HD5980_V_0.fits"], transfer="direct")
    assert not result.failures
    raw = butler.get(result.ingested[0])
    frame = describe_frame(camera, 0, raw.metadata)
    assert frame.amplifiers[0].gain == float(raw.metadata["GAIN"]) == 1.5
    assert (frame.nx, frame.ny, frame.pixel_scale) == (512, 512, 0.68)
    np.testing.assert_array_equal(assemble(raw.array, frame).image, raw.array.astype(np.float32))
