"""Leave out rows of a table that a filter of Spark's would leave out."""

from __future__ import annotations

__all__ = ["ColumnTest", "keep_rows"]

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TESTS: Mapping[str, Callable[[Any, Any], Any]] = {
    "EqualTo": pc.equal,
    "GreaterThan": pc.greater,
    "GreaterThanOrEqual": pc.greater_equal,
    "LessThan": pc.less,
    "LessThanOrEqual": pc.less_equal,
}


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnTest:
    """A comparison of a column with a value."""

    column: str
    """Name of the column."""

    kind: str
    """Name of the class of PySpark that stands for the comparison."""

    value: Any
    """What the column is compared with; a list for ``In``."""


def keep_rows(table: pa.Table, tests: Sequence[ColumnTest]) -> pa.Table:
    """Leave out rows that fail a test.

    Parameters
    ----------
    table
        The table.
    tests
        The tests.  Those whose meaning may differ between Arrow and Spark are
        passed over.

    Returns
    -------
    table
        The other rows, with some that fail: not-a-number, which Spark takes
        for larger than all numbers, passes every test here.
    """
    mask: pa.ChunkedArray | None = None
    for test in tests:
        if (
            test.column in table.column_names
            and (passed := _test(table.column(test.column), test)) is not None
        ):
            mask = passed if mask is None else pc.and_kleene(mask, passed)
    # Nulls in it don't pass, and neither do they in Spark.
    return table if mask is None else table.filter(mask)


def _test(column: pa.ChunkedArray, test: ColumnTest) -> pa.ChunkedArray | None:
    """Find which rows pass; `None` if that isn't sure."""
    is_float = pa.types.is_floating(column.type)
    is_in = test.kind == "In"
    if is_in and is_float:
        # Arrow looks for the same bits, and there are two zeros.
        return None
    values = [value for value in test.value if value is not None] if is_in else [test.value]
    if not all(_fits(column.type, value) for value in values):
        return None
    try:
        if is_in:
            return pc.is_in(column, value_set=pa.array(values, type=column.type))
        passed = _TESTS[test.kind](column, pa.scalar(values[0], type=column.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError):
        return None
    return pc.or_kleene(passed, pc.is_nan(column)) if is_float else passed


def _fits(column_type: pa.DataType, value: Any) -> bool:
    """Whether a value is of the kind that a column has."""
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(column_type))
    if pa.types.is_integer(column_type):
        return isinstance(value, int)
    if pa.types.is_floating(column_type):
        return isinstance(value, int | float) and not math.isnan(value)
    return bool(pa.types.is_string(column_type)) and isinstance(value, str)
