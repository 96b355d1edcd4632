from __future__ import annotations

from typing import Any

import pytest
from lsst.resources import ResourcePath

from spark_butler.obs import CameraDescription
from spark_butler.obs.camera.exposures import RawFile, describe_raw
from spark_butler.obs.camera.header_fields import HeaderField, HeaderValueError
from tests.tasks.scene_harness import make_camera


def test_a_day_and_a_time_in_two_cards_are_joined() -> None:
    field = HeaderField(keyword=("DATE-OBS", "UT"), join="T")
    time = field.time({"DATE-OBS": "2013-07-13", "UT": "00:57:33"})
    assert time is not None
    assert time.isot == "2013-07-13T00:57:33.000"
    assert field.time({"DATE-OBS": "2013-07-13"}) is None


def test_three_cards_make_an_angle() -> None:
    field = HeaderField(keyword=("RAH", "RAM", "RAS"), join=" ", unit="hour")
    assert field.angle({"RAH": 16, "RAM": 41, "RAS": 41.5}) == pytest.approx(
        15 * (16 + 41 / 60 + 41.5 / 3600)
    )


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        # Whole degrees of 0 keep the sign of a text; a card of 0 is not missing.
        ({"D": "-00", "M": 30, "S": 36.0}, -0.51),
        ({"D": -5, "M": 0, "S": 0.0}, -5.0),
        ({"D": 0, "M": 0, "S": 0.0}, 0.0),
        ({"D": 12, "M": 30, "S": None}, None),
    ],
)
def test_cards_of_an_angle_may_be_0_and_have_a_sign(cards: dict[str, Any], expected: float | None) -> None:
    angle = HeaderField(keyword=("D", "M", "S"), join=" ").angle(cards)
    assert angle == (None if expected is None else pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(("sign", "expected"), [("-", -5.51), ("+", 5.51)])
def test_the_sign_of_an_angle_may_be_a_card_of_its_own(sign: str, expected: float) -> None:
    field = HeaderField(keyword=("SIGN", "D", "M", "S"), join=" ")
    assert field.angle({"SIGN": sign, "D": 5, "M": 30, "S": 36}) == pytest.approx(expected)


def test_a_factor_scales_numbers_and_turns_angles_around() -> None:
    assert HeaderField(keyword=("EXPMS",), factor=0.001).number({"EXPMS": 30000}) == pytest.approx(30.0)
    assert HeaderField(keyword=("EXPMIN",), factor=60.0).number({"EXPMIN": "2.5"}) == pytest.approx(150.0)
    assert HeaderField(keyword=("ROT",), factor=-1.0).angle({"ROT": 12.5}) == -12.5


@pytest.mark.parametrize("value", ["nan", "inf", "thirty"])
def test_what_is_no_finite_number_is_refused_with_its_value(value: str) -> None:
    with pytest.raises(HeaderValueError, match=f"EXPTIME = '{value}' is not a"):
        HeaderField(keyword=("EXPTIME",)).number({"EXPTIME": value})


@pytest.mark.parametrize(
    ("text", "layout", "expected"),
    [
        ("05/04/87", "%d/%m/%y", "1987-04-05T00:00:00.000"),
        ("1999-12-31 23:10:05", "%Y-%m-%d %H:%M:%S", "1999-12-31T23:10:05.000"),
        ("1999-12-31 23:10:05.25", "%Y-%m-%d %H:%M:%S.%f", "1999-12-31T23:10:05.250"),
        # Two figures of a year are never of one to come.
        ("01/02/65", "%d/%m/%y", "1965-02-01T00:00:00.000"),
        ("13/07/13", "%d/%m/%y", "2013-07-13T00:00:00.000"),
    ],
)
def test_old_forms_of_dates_are_read_by_a_strptime_format(text: str, layout: str, expected: str) -> None:
    time = HeaderField(keyword=("DATE",), time_format=layout).time({"DATE": text})
    assert time is not None
    assert time.isot == expected


def test_numbers_of_times_and_angles_may_be_texts_with_a_decimal_comma() -> None:
    field = HeaderField(keyword=("JD",), time_format="jd", decimal_comma=True)
    time = field.time({"JD": "2456486,5"})
    assert time is not None
    assert time.isot == "2013-07-13T00:00:00.000"
    assert HeaderField(keyword=("DEC",), decimal_comma=True).angle({"DEC": "-12,5"}) == -12.5
    for text in ("noon", "nan"):
        with pytest.raises(HeaderValueError, match=f"JD = '{text}' is not a time in jd"):
            field.time({"JD": text})


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        # Meeus, Astronomical Algorithms, table 7.
        (2447332.0, "jd", "1988-06-19T12:00:00.000"),
        ("2446822.5", "jd", "1987-01-27T00:00:00.000"),
        # Seconds since 1970 of 1 January 1990.
        (631152000, "unix", "1990-01-01T00:00:00.000"),
    ],
)
def test_numbers_are_times_before_2000(value: object, form: str, expected: str) -> None:
    time = HeaderField(keyword=("DATE",), time_format=form).time({"DATE": value})
    assert time is not None
    assert time.isot == expected


def describe(**header: Any) -> RawFile:
    """Return what a header says to a camera that reads date, position and equinox from it."""
    keywords = {
        "ra": {"keyword": "RA", "unit": "hour"},
        "dec": "DEC",
        "equinox": "EQUINOX",
        "date_begin": "DATE",
    }
    content = make_camera(32).model_dump(mode="json", exclude_defaults=True)
    constants = {
        "detector": 0,
        "image_type": "x",
        "physical_filter": "r",
        "exposure_id": 1,
        "exposure_time": 1,
    }
    content["header"] = {**{name: {"constant": value} for name, value in constants.items()}, **keywords}
    cards = {"DATE": "1987-04-05T01:00:00", **header}
    return describe_raw(ResourcePath("a.fits"), cards, CameraDescription.from_dict(content))


@pytest.mark.parametrize(
    ("equinox", "ra", "dec"),
    [
        (None, "18:36:56.34", "38:47:01.3"),
        (2000.0, "18:36:56.34", "38:47:01.3"),
        # Vega in the FK4; the FK5's was precessed by hand by Newcomb's rates, to a minute of arc.
        ("B1950", "18:35:14.66", "38:44:09.7"),
        (1950.0, "18:35:14.66", "38:44:09.7"),
        (1987.3, "18:36:30.6", "38:46:20"),
    ],
)
def test_positions_of_any_equinox_become_icrs(equinox: Any, ra: str, dec: str) -> None:
    exposure = describe(RA=ra, DEC=dec, EQUINOX=equinox).exposure
    # Vega, from SIMBAD; proper motion moves it by 17 arcseconds in 50 years.
    assert exposure["tracking_ra"] == pytest.approx(279.2347, abs=0.02)
    assert exposure["tracking_dec"] == pytest.approx(38.7837, abs=0.006)


@pytest.mark.parametrize(
    ("equinox", "ra", "dec", "expected"),
    [
        # Theta Persei, precessed from J2000 to 2028 November 13.19: Meeus, example 21.b.
        (2028.86705, 41.547214 / 15.0, 49.348483, (41.054063, 49.227750)),
        # The quasar 3C 273, which does not move, in the FK4 and in the ICRS.
        ("B1950", "12:26:33.246", "02:19:43.47", (187.2779154, 2.0523883)),
    ],
)
def test_positions_agree_with_published_ones_within_a_tenth_of_an_arcsecond(
    equinox: Any, ra: Any, dec: Any, expected: tuple[float, float]
) -> None:
    exposure = describe(RA=ra, DEC=dec, EQUINOX=equinox).exposure
    assert (exposure["tracking_ra"], exposure["tracking_dec"]) == pytest.approx(expected, abs=0.15 / 3600.0)


def test_an_equinox_that_is_no_year_is_refused() -> None:
    with pytest.raises(HeaderValueError, match="equinox = 'mean' is not a year"):
        describe(RA="18:36:56", DEC="38:47:01", EQUINOX="mean")


def test_a_date_that_the_registry_can_not_hold_is_refused() -> None:
    with pytest.raises(HeaderValueError, match=r"date_begin = 1965-03-01T00:00:00\.000 is before 1970"):
        describe(DATE="1965-03-01T00:00:00", RA="18:36:56", DEC="38:47:01")
