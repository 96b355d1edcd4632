"""Headers that contradict what a camera's description takes from them, and drafts for such headers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pytest
import yaml
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from spark_butler.obs import CameraDescription
from spark_butler.obs.camera.draft import draft_description
from spark_butler.obs.camera.exposures import read_raw_file
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument

# The quasar 3C 273, which does not move: its published positions in the ICRS and in the FK4 of B1950.
_CARDS: dict[str, Any] = {
    "INSTRUME": "Plain",
    "DATE-OBS": "2013-07-13T00:57:33",
    "EXPTIME": 30.0,
    "FILTER": "V",
    "RA": "12:29:06.6997",
    "DEC": "+02:03:08.598",
}
_POSITION = (187.2779154, 2.0523883)
_DESCRIPTION: dict[str, Any] = {
    "name": "Plain",
    "filters": [{"name": "V", "band": "V"}],
    "image_types": {"science": ["light"]},
    "calibrations": [],
    "header": {
        "exposure_id": {"keyword": "NUMBER", "default": 1},
        "detector": {"constant": 0},
        "image_type": {"constant": "light"},
        "date_begin": "DATE-OBS",
        "exposure_time": "EXPTIME",
        "physical_filter": "FILTER",
        "ra": {"keyword": "RA", "unit": "hour"},
        "dec": "DEC",
    },
    "detectors": [
        {
            **{"id": 0, "name": "ccd", "raw_nx": 24, "raw_ny": 20, "nx": 24, "ny": 20, "pixel_scale": 1.0},
            "amplifiers": [
                {
                    **{"name": "all", "gain": 1.0, "read_noise": 5.0, "saturation": 60000},
                    **{"raw_data_section": "[1:24, 1:20]", "section": "[1:24, 1:20]"},
                }
            ],
        }
    ],
}


def _write(path: Path, **cards: Any) -> Path:
    """Write a frame; a card may have a comment, and `None` removes one."""
    hdu = astropy.io.fits.PrimaryHDU(np.zeros((20, 24), dtype=np.uint16))
    for keyword, value in {**_CARDS, **cards}.items():
        if value is not None:
            hdu.header[keyword] = value
    hdu.writeto(path)
    return path


def _camera(**fields: Any) -> CameraDescription:
    return CameraDescription.from_dict({**_DESCRIPTION, "header": {**_DESCRIPTION["header"], **fields}})


_JOIN = {"keyword": ["DATE-OBS", "UT"], "join": "T"}


@pytest.mark.parametrize(
    ("cards", "wrong", "reason", "right"),
    [
        pytest.param(
            {"DATE-OBS": "2013-07-13", "UT": "00:57:33"},
            {},
            "DATE-OBS = '2013-07-13' is midnight, and UT = '00:57:33' has the time",
            {"date_begin": _JOIN},
            id="day and time",
        ),
        pytest.param(
            {"DATE-OBS": "2013-07-13T00:00:00", "UTSTART": "23:10:05"},
            {},
            "is midnight, and UTSTART = '23:10:05' has the time",
            {
                "date_begin": {
                    **{"keyword": ["DATE-OBS", "UTSTART"], "join": "T"},
                    "time_format": "%Y-%m-%dT00:00:00T%H:%M:%S",
                }
            },
            id="midnight and time",
        ),
        pytest.param(
            {"DATE-OBS": "2013-07-13", "MJD-OBS": 56486.0399653},
            {},
            "MJD-OBS = 56486.0399653 has the time; take that",
            {"date_begin": {"keyword": "MJD-OBS", "time_format": "mjd"}},
            id="day and MJD",
        ),
        pytest.param(
            {"DATE-OBS": "13/07/13", "TIME-OBS": "00:57:33"},
            {"date_begin": {"keyword": "DATE-OBS", "time_format": "%d/%m/%y"}},
            "TIME-OBS = '00:57:33' has the time",
            {
                "date_begin": {
                    **{"keyword": ["DATE-OBS", "TIME-OBS"], "join": "T"},
                    "time_format": "%d/%m/%yT%H:%M:%S",
                }
            },
            id="old date and time",
        ),
        pytest.param(
            {"EXPTIME": (30000, "exposure time in ms")},
            {},
            "EXPTIME = 30000 is in milliseconds by its comment 'exposure time in ms'; add factor: 0.001",
            {"exposure_time": {"keyword": "EXPTIME", "factor": 0.001}},
            id="milliseconds",
        ),
        pytest.param(
            {"EXPTIME": 30000, "EXPOSURE": 30.0},
            {},
            "EXPTIME = 30000 gives 30000 s, and EXPOSURE = 30.0 is a thousandth",
            {"exposure_time": "EXPOSURE"},
            id="milliseconds by another card",
        ),
        pytest.param(
            {"EXPTIME": 30000, "DATE-END": "2013-07-13T00:58:05"},
            {},
            "DATE-END = '2013-07-13T00:58:05' is 32 s after the begin",
            {"exposure_time": {"keyword": "EXPTIME", "factor": 0.001}},
            id="milliseconds by the end",
        ),
        pytest.param(
            {},
            {"ra": "RA"},
            "RA = '12:29:06.6997' looks like hours",
            {"ra": {"keyword": "RA", "unit": "hour"}},
            id="RA",
        ),
        pytest.param(
            {"RA": 12.4851944},
            {"ra": "RA"},
            None,
            {"ra": {"keyword": "RA", "unit": "hour"}},
            id="decimal RA without a comment",
        ),
        pytest.param(
            {"RA": (12.4851944, "Right ascension (hours)")},
            {"ra": "RA"},
            "RA = 12.4851944 looks like hours",
            {"ra": {"keyword": "RA", "unit": "hour"}},
            id="decimal RA",
        ),
        pytest.param(
            {"RA": "12:26:33.246", "DEC": "+02:19:43.47", "EQUINOX": 1950.0},
            {},
            "EQUINOX = 1950.0, and the description takes ra and dec as ICRS",
            {"equinox": "EQUINOX"},
            id="equinox",
        ),
        pytest.param(
            {"RA": "12:26:33.246", "DEC": "+02:19:43.47", "RADECSYS": "FK4"},
            {},
            "RADECSYS = 'FK4', and the description takes ra and dec as ICRS",
            {"equinox": {"keyword": "RADECSYS", "values": {"FK4": "B1950"}}},
            id="FK4",
        ),
    ],
)
def test_value_that_contradicts_the_header_is_refused_until_described(
    tmp_path: Path, cards: dict[str, Any], wrong: dict[str, Any], reason: str | None, right: dict[str, Any]
) -> None:
    file = ResourcePath(_write(tmp_path / "a.fits", **cards))
    if reason is not None:
        with pytest.raises(ValueError, match=re.escape(reason)):
            read_raw_file(file, [_camera(**wrong)])
    exposure = read_raw_file(file, [_camera(**right)]).exposure
    begin = "2013-07-13T23:10:05" if "UTSTART" in cards else "2013-07-13T00:57:33"
    assert exposure["timespan"].begin.utc.isot[:19] == begin
    assert exposure["exposure_time"] == pytest.approx(30.0)
    assert (exposure["tracking_ra"], exposure["tracking_dec"]) == pytest.approx(_POSITION, abs=1e-4)


@pytest.mark.parametrize(
    ("cards", "fields"),
    [
        pytest.param({"DATE-OBS": "2013-07-13T00:00:00", "UT": "00:00:02"}, {}, id="exposure at midnight"),
        pytest.param({"DATE-OBS": "2013-07-13", "UT": None}, {}, id="day alone"),
        pytest.param({"EXPTIME": (30000.0, "Exposure time [s]; was ms")}, {}, id="seconds"),
        pytest.param(
            {"EXPTIME": (30000.0, "ms")}, {"exposure_time": {"keyword": "EXPTIME", "factor": 1}}, id="factor"
        ),
        pytest.param({"DATE-END": "2013-07-13T00:57:33"}, {}, id="end is begin"),
        pytest.param({"RA": "187:16:40"}, {"ra": "RA"}, id="sexagesimal degrees"),
        pytest.param({}, {"ra": {"keyword": "RA", "unit": "deg"}}, id="unit deg"),
        pytest.param({"RA": "12h29m06.7s"}, {"ra": "RA"}, id="letters"),
        pytest.param({"RA": (12.48, "degrees, not hours")}, {"ra": "RA"}, id="degrees"),
        pytest.param({"EQUINOX": 1950.0, "RADESYS": "ICRS"}, {}, id="ICRS"),
        pytest.param({"EPOCH": 2013.53}, {}, id="epoch of the exposure"),
        pytest.param({"EQUINOX": 1950.0}, {"equinox": {"constant": 2000}}, id="wrong equinox"),
        pytest.param({"EQUINOX": "J2000.0", "RADESYS": "FK5"}, {}, id="J2000"),
    ],
)
def test_header_that_contradicts_nothing_is_accepted(
    tmp_path: Path, cards: dict[str, Any], fields: dict[str, Any]
) -> None:
    file = ResourcePath(_write(tmp_path / "a.fits", **cards))
    # The camera dataset has every key.
    stored = CameraDescription.from_dict(_camera(**fields).model_dump(mode="json"))
    assert read_raw_file(file, [stored]).exposure["id"] == 1


def test_file_that_contradicts_the_description_spares_the_others(butler: Butler, tmp_path: Path) -> None:
    camera, frames = tmp_path / "plain.yaml", tmp_path / "frames"
    camera.write_text(yaml.safe_dump(_DESCRIPTION))
    frames.mkdir()
    register_instrument(butler, camera)
    bad = [
        _write(frames / "day.fits", **{"NUMBER": 2, "DATE-OBS": "2013-07-13", "UT": "00:57:33"}),
        _write(frames / "equinox.fits", NUMBER=3, EQUINOX=1950.0),
        _write(frames / "ms.fits", NUMBER=4, EXPTIME=(30000, "[ms] exposure time")),
    ]
    _write(frames / "good.fits", NUMBER=5)
    result = ingest_raws(butler, [frames], transfer="direct")
    assert [ref.dataId["exposure"] for ref in result.ingested] == [5]
    assert set(result.failures) == set(map(str, bad))
    assert all("\n" not in text and text.startswith(name) for name, text in result.failures.items())


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        pytest.param({"DATE-OBS": "2013-07-13", "UT": "00:57:33"}, {"date_begin": _JOIN}, id="UT"),
        pytest.param(
            {"DATE-OBS": "2013-07-13", "UTSTART": "00:57:33.25"},
            {"date_begin": {"keyword": ["DATE-OBS", "UTSTART"], "join": "T"}},
            id="UTSTART",
        ),
        pytest.param(
            {"DATE-OBS": "13/07/13", "UTC": "00:57:33.25"},
            {
                "date_begin": {
                    **{"keyword": ["DATE-OBS", "UTC"], "join": "T"},
                    "time_format": "%d/%m/%yT%H:%M:%S.%f",
                }
            },
            id="old date",
        ),
        pytest.param(
            {"DATE-OBS": "2013-07-13T00:00:00", "TIME-OBS": "00:57:33"},
            {
                "date_begin": {
                    **{"keyword": ["DATE-OBS", "TIME-OBS"], "join": "T"},
                    "time_format": "%Y-%m-%dT00:00:00T%H:%M:%S",
                }
            },
            id="midnight",
        ),
        pytest.param(
            {"DATE-OBS": "2013-07-13", "MJD-OBS": 56486.0399653},
            {"date_begin": {"keyword": "MJD-OBS", "time_format": "mjd"}},
            id="MJD",
        ),
        pytest.param(
            {"DATE-OBS": "2013-07-13 00:57:33"},
            {"date_begin": {"keyword": "DATE-OBS", "time_format": "iso"}},
            id="blank",
        ),
        pytest.param(
            {"EXPTIME": (30000, "Exposure time (msec)")},
            {"exposure_time": {"keyword": "EXPTIME", "factor": 0.001}},
            id="milliseconds",
        ),
        pytest.param(
            {"RA": "12:29:06,6997", "DEC": "+02:03:08,598"},
            {
                "ra": {"keyword": "RA", "unit": "hour", "decimal_comma": True},
                "dec": {"keyword": "DEC", "decimal_comma": True},
            },
            id="decimal commas",
        ),
        pytest.param(
            {"RA": (12.4851944, "[h] right ascension"), "DEC": 2.0523883},
            {"ra": {"keyword": "RA", "unit": "hour"}},
            id="decimal hours",
        ),
        pytest.param(
            {"RA": "12:26:33.246", "DEC": "+02:19:43.47", "EPOCH": 1950.0}, {"equinox": "EPOCH"}, id="equinox"
        ),
        pytest.param(
            {"RA": "12:26:33.246", "DEC": "+02:19:43.47", "RADESYS": "FK4"},
            {"equinox": {"keyword": "RADESYS", "values": {"FK4": 1950}}},
            id="FK4",
        ),
        pytest.param({"EQUINOX": 2000.0, "RADESYS": "FK5"}, {"date_begin": "DATE-OBS"}, id="J2000"),
    ],
)
def test_draft_reads_the_header_rightly(
    tmp_path: Path, cards: dict[str, Any], expected: dict[str, Any]
) -> None:
    file = ResourcePath(_write(tmp_path / "a.fits", **cards))
    draft = draft_description([file])
    assert draft.failures == {}
    content = yaml.safe_load(draft.text)
    assert {key: content["header"].get(key) for key in expected} == expected
    assert ("equinox" in content["header"]) == ("equinox" in expected)
    exposure = read_raw_file(file, [CameraDescription.from_dict(content)]).exposure
    assert exposure["timespan"].begin.utc.isot[:19] == "2013-07-13T00:57:33"
    assert exposure["exposure_time"] == pytest.approx(30.0)
    assert (exposure["tracking_ra"], exposure["tracking_dec"]) == pytest.approx(_POSITION, abs=1e-4)


def test_draft_marks_a_day_without_a_time_as_a_guess(tmp_path: Path) -> None:
    draft = draft_description([ResourcePath(_write(tmp_path / "a.fits", **{"DATE-OBS": "2013-07-13"}))])
    (line,) = (line for line in draft.text.splitlines() if "date_begin" in line)
    assert "# guess: midnight" in line


def test_draft_asks_once_for_a_time_that_no_header_has(tmp_path: Path) -> None:
    draft = draft_description([ResourcePath(_write(tmp_path / "a.fits", **{"DATE-OBS": None}))])
    assert sum(question.startswith("date_begin: ") for question in draft.questions) == 1
