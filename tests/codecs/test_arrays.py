"""Arrays and tables of all kinds go through the codec and come back exactly."""

from __future__ import annotations

from typing import Any

import astropy.table
import astropy.units as u
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import Angle, Latitude, Longitude, SkyCoord
from astropy.time import Time
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis.extra import numpy as npst
from lsst.daf.butler import SerializedDatasetType, StorageClassFactory
from lsst.pipe.base.tests.mocks import MockDataset

from spark_butler.codecs import copy_object, decode, encode
from tests.codecs.codec_compare import assert_independent, assert_same, join

_ANY = StorageClassFactory().getStorageClass("StructuredDataDict")


def _check(obj: Any) -> Any:
    data = join(encode(obj, _ANY))
    back, other = decode(data, _ANY), decode(bytearray(data), _ANY)
    copy = copy_object(obj, _ANY)
    for each in (back, other, copy):
        assert_same(obj, each)
        assert_independent(obj, each)
    assert_independent(back, other)
    return back


_BIG = np.random.default_rng(1).normal(size=(60, 50))


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


_ARRAYS = {
    "empty": np.zeros((0, 3)),
    "zero-dimensional": np.array(3.5),
    "small": np.arange(3),
    "fortran": np.asfortranarray(_BIG),
    "strided": _BIG[::2, ::3],
    "reversed": _BIG[::-1],
    "transposed": np.arange(3000.0).reshape(10, 15, 20).transpose(1, 0, 2),
    "broadcast": np.broadcast_to(np.arange(50.0), (60, 50)),
    "read-only": _read_only(_BIG),
    "small read-only": _read_only(np.arange(3)),
    "big-endian": _BIG.astype(">f8"),
    "times": np.arange("2026-01-01", "2036-01-01", dtype="M8[D]"),
    "time differences": np.arange(2000).astype("m8[ms]"),
    "strings": np.array(["a", "né" * 40] * 50),
    "bytes": np.array([b"a", b"b\0c"] * 500),
    "no bytes": np.zeros(3, "S0"),
    "void": np.zeros(300, "V7"),
    "complex": _BIG.astype(np.complex64),
    "booleans": _BIG > 0,
    "objects": np.array([None, 1, "a", {"b": 2.0}] * 300, dtype=object).reshape(30, 40),
    "structured": np.ones((30, 2), dtype=[("a", "<i2"), ("b", ">f4", (2, 3)), ("c", [("d", "S3")])]),
    "padded": np.ones(300, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "object field": np.array([(1, None), (2, "x")], dtype=[("a", "i4"), ("o", object)]),
    "record array": np.rec.array([(1, 2.0), (3, 4.0)] * 200, names=["a", "b"]),
    "variable strings": np.array(["a", "b" * 100], dtype=np.dtypes.StringDType()),
    "masked": np.ma.masked_array(_BIG, mask=_BIG > 0.5, fill_value=-1.0),
    "nothing masked": np.ma.masked_array(_BIG),
    "hard mask": np.ma.masked_array(np.arange(5), mask=np.array([0, 1, 0, 0, 1], bool), hard_mask=True),
    "masked structured": np.ma.masked_array(
        np.zeros(99, "i4,f8"),
        mask=[(0, 1), (1, 0), (0, 0)] * 33,  # type: ignore[arg-type]
    ),
    "masked objects": np.ma.masked_array(np.array([None, "a"], dtype=object), mask=[True, False]),
    "quantity": _BIG * u.nJy,
    "integer quantity": u.Quantity(np.arange(2000), u.ct, dtype=int),
    "scalar quantity": 3.0 * u.s,
    "magnitude": np.linspace(1, 2, 300) * u.ABmag,
    "angle": Angle(np.linspace(0, 1, 300), u.rad),
    "longitude": Longitude(np.linspace(0, 359, 300), u.deg, wrap_angle=180 * u.deg),
    "latitude": Latitude(np.linspace(-90, 90, 300), u.deg),
    "masked quantity": Masked(_BIG * u.s, mask=_BIG > 0),
    "masked astropy array": Masked(_BIG, mask=_BIG > 0),
    "masked time": Time(Masked(np.arange(300.0), mask=np.arange(300) % 2 == 0) + 6e4, format="mjd"),
    "masked coordinates": SkyCoord(Masked([1.0, 2.0] * u.deg, mask=[True, False]), [3.0, 4.0] * u.deg),
    "column": astropy.table.Column(np.arange(300), "a", unit="s", format="%d", meta={"b": [1]}),
    "object column": astropy.table.Column([None, "a"], "a", dtype=object, description="any"),
    "masked column": astropy.table.MaskedColumn(np.arange(300), "a", mask=np.arange(300) > 7, fill_value=3),
}


@pytest.mark.parametrize("name", _ARRAYS)
def test_arrays_of_all_kinds(name: str) -> None:
    _check(_ARRAYS[name])
    _check({"one": _ARRAYS[name], "again": _ARRAYS[name]})


def test_memory_order_is_kept() -> None:
    assert _check(_ARRAYS["fortran"]).flags.f_contiguous
    assert copy_object(_ARRAYS["fortran"], _ANY).flags.f_contiguous


def test_a_memory_map_comes_back_as_one_in_memory(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "a", dtype=np.float64, mode="w+", shape=(300,))
    mapped[:] = np.arange(300)
    back = decode(join(encode(mapped, _ANY)), _ANY)
    assert np.array_equal(back, np.arange(300.0))
    back[0] = -1
    assert mapped[0] == 0


def test_hard_masks_stay_hard() -> None:
    back = _check(_ARRAYS["hard mask"])
    back[1] = 77
    assert back[1] is np.ma.masked


def test_one_array_in_two_places_stays_one() -> None:
    back = decode(join(encode({"a": _BIG, "b": _BIG}, _ANY)), _ANY)
    assert back["a"] is back["b"]


_DTYPES = st.one_of(
    npst.scalar_dtypes(), npst.unicode_string_dtypes(), npst.byte_string_dtypes(), npst.array_dtypes()
)


@settings(max_examples=60, deadline=None)
@given(npst.arrays(_DTYPES, npst.array_shapes(max_dims=4, min_side=0, max_side=7)), st.randoms())
def test_any_array(array: np.ndarray, random: Any) -> None:
    steps = tuple(slice(None, None, random.choice([1, 2, -1])) for _ in array.shape)
    _check(array[steps])
    _check(np.asfortranarray(array))


_VALUES = {
    "i8": st.integers(-(2**31), 2**31 - 1),
    "f8": st.floats(),
    "U": st.text(max_size=5).filter(lambda text: not text.endswith("\0")),
    "b": st.booleans(),
}


@st.composite
def _tables(draw: Any) -> astropy.table.Table:
    n = draw(st.integers(0, 200))
    table = draw(st.sampled_from([astropy.table.Table, astropy.table.QTable]))(
        meta=draw(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
    )
    for number, kind in enumerate(draw(st.lists(st.sampled_from(list(_VALUES)), max_size=4))):
        values = np.resize(np.array(draw(st.lists(_VALUES[kind], min_size=1, max_size=9)), dtype=kind), n)
        unit = u.nJy if kind == "f8" and draw(st.booleans()) else None
        if draw(st.booleans()):
            mask = np.arange(n) % draw(st.integers(1, 5)) == 0
            column: Any = astropy.table.MaskedColumn(values, mask=mask, unit=unit)
        else:
            column = astropy.table.Column(
                values, unit=unit, description=draw(st.none() | st.text(max_size=3))
            )
        table[f"c{number}"] = column
    return table


@settings(max_examples=40, deadline=None)
@given(_tables())
def test_any_table(table: astropy.table.Table) -> None:
    _check(table)


def test_tables_with_an_index_keep_it() -> None:
    table = astropy.table.Table({"a": [3, 1, 2], "b": [1.0, 2.0, 3.0]})
    table.add_index("a")
    back = decode(join(encode(table, _ANY)), _ANY)
    assert back.loc[2]["b"] == 3.0
    assert [index.columns[0].info.name for index in back.indices] == ["a"]
    assert_independent(table, back)
    back["a"][0] = 9
    assert back.loc[9]["b"] == 1.0
    assert table.loc[3]["b"] == 1.0


def test_columns_know_the_table_they_are_in() -> None:
    back = _check(astropy.table.QTable({"a": np.arange(300.0) * u.s, "b": np.arange(300)}))
    assert back["a"].info.parent_table is back
    back.rename_column("a", "c")
    back["b"][0] = 7
    back.sort("b")
    assert back.colnames == ["c", "b"]


def test_arrow_tables_are_not_copied_on_the_way() -> None:
    table = pa.table({"a": np.arange(100_000.0), "s": ["text"] * 100_000})
    encoded = encode(table, _ANY)
    assert sum(buffer.nbytes for buffer in encoded.buffers) >= table.nbytes
    data = join(encoded)
    back = _check(table)
    assert back.equals(table)
    whole = np.frombuffer(data, np.uint8)
    again = decode(data, _ANY)
    assert np.shares_memory(whole, again["a"].chunk(0).to_numpy())


def test_a_slice_of_an_arrow_table_travels_without_the_rest() -> None:
    table = pa.table({"a": np.arange(100_000.0), "s": ["text"] * 100_000}, metadata={"origin": "here"})
    part = table.slice(50_000, 100)
    assert encode(part, _ANY).nbytes < 10_000
    assert _check(part).equals(part, check_metadata=True)
    nothing = table.slice(0, 0)
    assert encode(nothing, _ANY).nbytes < 10_000
    assert _check(nothing).schema.equals(table.schema, check_metadata=True)


def test_data_frames_are_independent_of_each_other() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(3000.0), "b": np.arange(3000)})
    before = frame.copy(deep=True)
    data = join(encode(frame, _ANY))
    for back in (decode(data, _ANY), copy_object(frame, _ANY)):
        back.loc[0, "a"] = -1.0
        back["b"] += 1
        assert back.loc[0, "a"] == -1.0
        pd.testing.assert_frame_equal(frame, before)
    frame.loc[1, "a"] = -2.0
    assert decode(bytearray(data), _ANY).loc[1, "a"] in (1.0, -2.0)


def test_mock_datasets() -> None:
    mock = MockDataset(
        dataset_id=None,
        dataset_type=SerializedDatasetType(name="a", storageClass="_mock_Exposure", dimensions=["visit"]),
        data_id={"visit": 3},
        run="run",
        parameters={"bbox": "Box"},
    )
    mock.converted_from = mock.make_derived(storageClass="_mock_Image")
    assert _check(mock) == mock
