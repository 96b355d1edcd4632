from __future__ import annotations

import pytest

from spark_butler.obs._header_fields import HeaderField, HeaderValueError


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


def test_a_factor_scales_numbers_and_turns_angles_around() -> None:
    assert HeaderField(keyword=("EXPMS",), factor=0.001).number({"EXPMS": 30000}) == pytest.approx(30.0)
    assert HeaderField(keyword=("ROT",), factor=-1.0).angle({"ROT": 12.5}) == -12.5


@pytest.mark.parametrize("value", ["nan", "inf", "thirty"])
def test_what_is_no_finite_number_is_refused_with_its_value(value: str) -> None:
    with pytest.raises(HeaderValueError, match=f"EXPTIME = '{value}' is not a"):
        HeaderField(keyword=("EXPTIME",)).number({"EXPTIME": value})
