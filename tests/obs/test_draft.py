"""Drafts of cameras' descriptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from spark_butler.cli.main import main
from spark_butler.demo.simulation import SimulatedData


def _run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_draft_of_a_camera_registers_and_ingests_its_frames(
    repo: Path, night: SimulatedData, tmp_path: Path
) -> None:
    draft = tmp_path / "draft.yaml"
    result = _run("obs", "describe", night.raw_dir, "-o", draft)
    assert result.exit_code == 0, result.output
    questions = [line for line in result.stderr.splitlines() if line.startswith("QUESTION ")]
    text = draft.read_text()
    assert len(questions) == text.count("# QUESTION: ") <= 3
    camera = yaml.safe_load(text)
    assert camera["name"] == "SimCam"
    assert camera["calibrations"] == ["bias", "dark", "flat"]
    assert [each["id"] for each in camera["detectors"]] == [0, 1]
    assert camera["header"]["detector"] == "DETID"
    assert _run("obs", "register-instrument", repo, draft).exit_code == 0
    ingested = _run("obs", "ingest-raws", repo, night.raw_dir, "-t", "direct")
    assert ingested.exit_code == 0, ingested.output
    again = _run("obs", "describe", night.raw_dir, "-o", draft)
    assert again.exit_code == 2
    assert "exists; give another name" in again.stderr
    notes = tmp_path / "notes.fits"
    notes.write_text("no FITS file")
    mixed = _run("obs", "describe", night.raw_dir, notes, "--format", "json")
    assert mixed.exit_code == 1
    assert [each["file"] for each in json.loads(mixed.stdout)["failures"]] == [str(notes)]
    assert _run("obs", "describe", notes).exit_code == 2


_TIME = {"DATE-OBS": "2026-01-02T03:04:05"}
_AMATEUR = {"INSTRUME": "1 bad! name", "EXPTIME": "30,5", "XPIXSZ": 9.0, "FOCALLEN": 3325.0, "FILTER": "V"}
_POSITION = {"OBJCTRA": "01 02 03", "OBJCTDEC": "+04 05 06"}
_TWO_CARDS = {
    "TELESCOP": "Tel",
    "DATE-OBS": "2026-01-02",
    "UT": "03:04:05",
    "EXPTIME": 1.0,
    "FILTER": "clear",
}
_WCS = {"RA": 10.0, "DEC": -3.0, "CTYPE1": "RA---TAN", "CD1_1": 0.0, "CD2_1": 2.0e-4}


@pytest.mark.parametrize(
    ("cards", "expected", "questions"),
    [
        pytest.param(
            _TIME | _AMATEUR | _POSITION,
            ("Camera-1-bad-name", 0.5583, {"keyword": "OBJCTRA", "unit": "hour"}),
            {"gain", "read_noise", "saturation"},
            id="amateur",
        ),
        pytest.param(
            {**_TWO_CARDS, **_WCS, "GAIN": 1.5, "RDNOISE": 4.0},
            ("Tel", 0.72, "RA"),
            {"saturation"},
            id="two cards",
        ),
        pytest.param(
            {}, ("MyCamera", 1.0, {"constant": 0.0}), {"filters", "date_begin", "exposure_time"}, id="none"
        ),
    ],
)
def test_draft_follows_the_headers(
    repo: Path, tmp_path: Path, cards: dict[str, Any], expected: tuple[Any, ...], questions: set[str]
) -> None:
    frame = tmp_path / "frame.fits"
    header = astropy.io.fits.Header(cards)
    astropy.io.fits.PrimaryHDU(np.zeros((20, 30), dtype=np.uint16), header).writeto(frame)
    result = _run("obs", "describe", frame, "--format", "json")
    assert result.exit_code == 0, result.output
    draft = json.loads(result.stdout)
    camera = yaml.safe_load(draft["description"])
    detector = camera["detectors"][0]
    assert (camera["name"], detector["pixel_scale"], camera["header"]["ra"]) == expected
    assert (detector["raw_nx"], detector["raw_ny"]) == (30, 20)
    asked = [each.partition(":")[0] for each in draft["questions"]]
    assert sorted(asked) == sorted(questions)
    file = tmp_path / "camera.yaml"
    file.write_text(draft["description"])
    assert _run("obs", "register-instrument", repo, file).exit_code == 0
    assert _run("obs", "ingest-raws", repo, frame).exit_code == 0


_SECTIONS = {"TRIMSEC": "[  3: 28,   1: 20]", "BIASSEC": "[  29 :30, 1: 20 ]"}
_INDI = {
    "PIXSIZE1": 3.8,
    "XBINNING": 2,
    "YBINNING": 2,
    "SECPIX1": 2.67,
    "FRAME": "Dark",
    "GAIN": 200.0,
    "OFFSET": 50.0,
}


def _draft_of(tmp_path: Path, pixels: np.ndarray, cards: dict[str, Any]) -> Any:
    header = astropy.io.fits.Header({**_TIME, "EXPTIME": 2.0, **_POSITION, **cards})
    astropy.io.fits.PrimaryHDU(pixels, header).writeto(tmp_path / "frame.fits")
    result = _run("obs", "describe", tmp_path / "frame.fits", "--format", "json")
    assert result.exit_code == 0, result.output
    return yaml.safe_load(json.loads(result.stdout)["description"])


def test_draft_reads_sections_with_blanks(tmp_path: Path) -> None:
    (detector,) = _draft_of(tmp_path, np.zeros((20, 30), dtype=np.uint16), _SECTIONS)["detectors"]
    assert detector["nx"] == 26
    (amplifier,) = detector["amplifiers"]
    assert amplifier["raw_data_section"] == "[3:28, 1:20]"
    assert amplifier["raw_overscan_section"] == "[29:30, 1:20]"
    assert "bias_level" not in amplifier


@pytest.mark.parametrize(
    ("cards", "keyword", "name"),
    [
        pytest.param({"FILTER1": "open", "FILTER2": "NB_2.25"}, "FILTER2", "NB_2.25", id="second wheel"),
        pytest.param({"FILTER1": "open", "FILTER2": "Empty"}, "FILTER1", "open", id="no filter in the light"),
        pytest.param({"FILTERS": 48}, "FILTERS", "48", id="number of a filter"),
    ],
)
def test_draft_names_the_filter_that_is_in_the_light(
    tmp_path: Path, cards: dict[str, Any], keyword: str, name: str
) -> None:
    camera = _draft_of(tmp_path, np.zeros((20, 30), dtype=np.uint16), cards)
    assert camera["header"]["physical_filter"] == keyword
    assert [each["name"] for each in camera["filters"]] == [name]


def test_draft_takes_no_setting_of_the_camera_for_its_gain(tmp_path: Path) -> None:
    camera = _draft_of(tmp_path, np.zeros((20, 30), dtype=np.uint16), _INDI)
    assert camera["image_types"]["dark"] == ["Dark"]
    (detector,) = camera["detectors"]
    assert detector["pixel_scale"] == 2.67
    (amplifier,) = detector["amplifiers"]
    assert amplifier["gain"] == 1.0
    assert amplifier["bias_level"] == 0.0


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.int16, 32767), (np.uint16, 65535)])
def test_draft_expects_saturation_below_the_largest_number_of_a_pixel(
    tmp_path: Path, dtype: type[np.generic], largest: int
) -> None:
    camera = _draft_of(tmp_path, np.zeros((20, 30), dtype=dtype), {})
    assert 0.9 * largest < camera["detectors"][0]["amplifiers"][0]["saturation"] < largest


def test_draft_knows_binned_mosaic_and_joined_frames(repo: Path, tmp_path: Path) -> None:
    def write(
        name: str, shape: tuple[int, int], planes: int = 1, date: str = _TIME["DATE-OBS"], **cards: object
    ) -> Path:
        time = {"DATE-OBS": date, "EXPTIME": 5.0}
        header = astropy.io.fits.Header({**time, "FILTER": "V", **_POSITION, **cards})
        hdus: list[Any] = [astropy.io.fits.PrimaryHDU(header=header)]
        for n in range(planes):
            hdus.append(astropy.io.fits.ImageHDU(np.zeros(shape, dtype=np.int16)))
            hdus[-1].header["GAIN"] = 1.5 + 0.1 * n
        path = tmp_path / f"{name}.fits"
        astropy.io.fits.HDUList(hdus).writeto(path)
        return path

    def draft(name: str, *frames: Path) -> Any:
        path = tmp_path / f"{name}.yaml"
        assert _run("obs", "describe", *frames, "--name", name, "-o", path).exit_code == 0
        assert _run("obs", "register-instrument", repo, path).exit_code == 0
        result = _run("obs", "ingest-raws", repo, *frames, "-t", "direct", "--instrument", name)
        assert result.exit_code == 0, result.output
        return yaml.safe_load(path.read_text())

    binned = draft(
        "Binned",
        write("whole", (20, 30), CCDSUM="1 1"),
        write("half", (10, 15), CCDSUM="2 2", date="2026-01-02T03:05:05"),
    )
    assert binned["header"]["binning"] == "CCDSUM"
    assert binned["detectors"][0]["raw_nx"] == 30
    color = draft("Color", write("color", (20, 30), BAYERPAT="GRBG"))
    assert color["detectors"][0]["mosaic"] == {"pattern": "GRBG", "color": "G"}
    joined = draft("Joined", write("four", (20, 30), planes=4))
    amplifiers = joined["detectors"][0]["amplifiers"]
    assert [each["gain"] for each in amplifiers] == ["GAIN@1", "GAIN@2", "GAIN@3", "GAIN@4"]
    assert [each["section"] for each in amplifiers][1] == "[31:60, 1:20]"


def test_drafts_of_real_cameras_register(repo: Path, shared_data: Path, tmp_path: Path) -> None:
    frames = shared_data / "opd_ngc346"
    draft = tmp_path / "draft.yaml"
    described = _run("obs", "describe", frames, "-o", draft)
    assert described.exit_code == 0, described.output
    assert draft.read_text().count("# QUESTION: ") <= 3
    camera = yaml.safe_load(draft.read_text())
    assert camera["header"]["exposure_time"] == {"keyword": "EXPTIME", "decimal_comma": True}
    assert camera["detectors"][0]["pixel_scale"] == 0.68
    assert _run("obs", "register-instrument", repo, draft).exit_code == 0
    ingested = _run("obs", "ingest-raws", repo, frames, "-t", "direct")
    assert ingested.stdout == "15 files ingested, 0 were there already, 0 failed.\n"
