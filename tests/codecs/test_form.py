"""The serialized form: alignment, large sizes, damage."""

from __future__ import annotations

import mmap
import pickle

import numpy as np
import pytest
from lsst.daf.butler import StorageClassFactory

from spark_butler.codecs import CodecError, EncodedObject, decode, encode
from spark_butler.codecs._encoding import ALIGNMENT, Form
from tests.codecs.codec_compare import join

_STORAGE_CLASS = StorageClassFactory().getStorageClass("StructuredDataDict")


def _sample() -> dict[str, object]:
    return {"a": np.arange(1001, dtype=np.uint8), "b": np.arange(700.0), "c": np.zeros((0, 5)), "d": "text"}


def test_pieces_are_views_and_add_up() -> None:
    sample = _sample()
    encoded = encode(sample, _STORAGE_CLASS)
    pieces = list(encoded.pieces())
    assert all(piece.format == "B" and piece.ndim == 1 and piece.nbytes for piece in pieces)
    assert sum(piece.nbytes for piece in pieces) == encoded.nbytes
    array = sample["b"]
    assert isinstance(array, np.ndarray)
    assert sum(np.shares_memory(array, np.asarray(piece)) for piece in pieces) == 1


def test_buffers_are_aligned_within_the_form() -> None:
    data = join(encode(_sample(), _STORAGE_CLASS))
    whole = np.frombuffer(data, np.uint8)
    form = Form.parse(data)
    starts = [np.asarray(buffer).ctypes.data - whole.ctypes.data for buffer in form.buffers if buffer.nbytes]
    assert starts
    assert all(start % ALIGNMENT == 0 for start in starts)


def test_arrays_are_views_on_the_data_and_writable() -> None:
    data = join(encode(_sample(), _STORAGE_CLASS))
    back = decode(memoryview(data), _STORAGE_CLASS)
    assert np.shares_memory(back["b"], np.frombuffer(data, np.uint8))
    back["b"][0] = 5.0
    back["a"] += 1


def test_an_array_of_more_than_2_gib_is_placed_right() -> None:
    # Anonymous memory that is never touched takes none.
    size = (5 << 29) + 3
    huge = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    encoded = encode({"huge": huge, "end": np.full(5000, 7.0)}, _STORAGE_CLASS)
    data = mmap.mmap(-1, encoded.nbytes)
    position = 0
    for piece in encoded.pieces():
        if piece.nbytes != size:
            data[position : position + piece.nbytes] = piece
        position += piece.nbytes
    assert position == encoded.nbytes > size
    back = decode(memoryview(data), _STORAGE_CLASS)
    assert back["huge"].shape == (size,)
    assert np.array_equal(back["end"], np.full(5000, 7.0))


def test_form_without_buffers_is_complete() -> None:
    encoded = EncodedObject.assemble("pickle", [memoryview(pickle.dumps(5))], [])
    assert decode(join(encoded), _STORAGE_CLASS) == 5


def test_damage_is_found() -> None:
    data = join(encode(_sample(), _STORAGE_CLASS))
    head = data.index(b"text")
    for position in (9, 13, 17, 25, 33, 41, head):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(CodecError, match="damaged|arrived with"):
            decode(damaged, _STORAGE_CLASS)


@pytest.mark.parametrize("length", [0, 5, 100])
def test_parts_of_a_form_are_refused(length: int) -> None:
    data = join(encode(_sample(), _STORAGE_CLASS))
    with pytest.raises(CodecError, match="aren't a serialized dataset|arrived with 100 bytes"):
        decode(data[:length], _STORAGE_CLASS)


def test_other_bytes_are_refused() -> None:
    with pytest.raises(CodecError, match="they begin with b'SIMPLE  '"):
        decode(bytearray(b"SIMPLE  =                    T" * 10), _STORAGE_CLASS)
