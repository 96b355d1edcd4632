"""Rows that a filter of Spark's would leave out."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from spark_butler.row_tests import ColumnTest, keep_rows

_TABLE = pa.table(
    {
        "n": pa.array([1, 2, None, 4], pa.int32()),
        "x": pa.array([-1.5, math.nan, 0.0, None], pa.float32()),
        "name": ["a", "b", None, "é"],
        "good": [True, False, None, True],
        "list": [[1], [2], [3], [4]],
        "row": [0, 1, 2, 3],
    }
)


@pytest.mark.parametrize(
    ("column", "kind", "value", "rows"),
    [
        ("n", "EqualTo", 2, [1]),
        ("n", "GreaterThan", 1, [1, 3]),
        ("n", "GreaterThanOrEqual", 2, [1, 3]),
        ("n", "LessThan", 2, [0]),
        ("n", "LessThanOrEqual", 2, [0, 1]),
        ("n", "In", (1, 4, None), [0, 3]),
        ("n", "In", (None,), []),
        ("name", "EqualTo", "é", [3]),
        ("name", "GreaterThan", "a", [1, 3]),
        ("name", "In", ["a", "é"], [0, 3]),
        ("good", "EqualTo", True, [0, 3]),
        # Not-a-number is larger than all numbers in Spark, and equal to itself.
        ("x", "GreaterThan", -1.0, [1, 2]),
        ("x", "GreaterThanOrEqual", 0, [1, 2]),
        ("x", "EqualTo", -0.0, [1, 2]),
        ("x", "LessThan", 0.0, [0, 1]),
    ],
)
def test_rows_that_fail_are_left_out(column: str, kind: str, value: Any, rows: list[int]) -> None:
    assert keep_rows(_TABLE, [ColumnTest(column, kind, value)])["row"].to_pylist() == rows


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("x", "In", (0.0,)),
        ("x", "EqualTo", math.nan),
        ("x", "LessThan", math.nan),
        ("x", "LessThanOrEqual", math.nan),
        ("n", "EqualTo", "2"),
        ("n", "EqualTo", True),
        ("n", "EqualTo", 1 << 40),
        ("name", "EqualTo", 3),
        ("good", "EqualTo", 1),
        ("list", "EqualTo", [1]),
        ("elsewhere", "EqualTo", 1),
        ("n", "EqualTo", None),
    ],
)
def test_what_may_mean_something_else_to_spark_is_left_to_it(column: str, kind: str, value: Any) -> None:
    assert keep_rows(_TABLE, [ColumnTest(column, kind, value)]) is _TABLE


def test_several_tests_leave_what_passes_all() -> None:
    tests = [
        ColumnTest("n", "LessThan", 4),
        ColumnTest("x", "In", (7.0,)),
        ColumnTest("good", "EqualTo", True),
    ]
    assert keep_rows(_TABLE, tests)["row"].to_pylist() == [0]
    assert keep_rows(_TABLE, []) is _TABLE
