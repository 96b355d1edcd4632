"""Pickling by protocol 5 with out-of-band buffers, and with reducers for types that need one.

Runs in workers and children.
"""

from __future__ import annotations

__all__ = ["pickle_dataset"]

import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle

from ._errors import CodecError
from ._reducers import find_reducer
from ._registry import find_codec, find_codec_of_type


class _Pieces:
    """A file that keeps the written pieces and doesn't join them."""

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if view.nbytes:
            self.pieces.append(view)
        return view.nbytes


def _from_parts(name: str, parts: Any) -> Any:
    if (codec := find_codec(name)) is None:
        raise CodecError(
            f"A dataset was serialized with the codec {name!r}, which this process doesn't have:"
            " provide it by an entry point in the group 'spark_butler.codecs' wherever workers run."
        )
    return codec.from_parts(parts)


class _ByCodec:
    """A dataset that the codec of its storage class converts."""

    def __init__(self, name: str, obj: Any):
        self._name = name
        self._obj = obj

    def __reduce__(self) -> Any:
        codec = find_codec(self._name)
        assert codec is not None, "Looked up before."
        return _from_parts, (self._name, codec.to_parts(self._obj))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler for datasets.

    Cloudpickle adds classes and functions that the receiver can't import, such
    as those of a notebook.
    """

    def __init__(self, file: _Pieces, buffer_callback: Callable[[pickle.PickleBuffer], None]):
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if (name := find_codec_of_type(cls)) is not None:
            return _ByCodec(name, obj).__reduce__()
        if (reducer := find_reducer(cls)) is not None:
            return reducer(obj)
        return super().reducer_override(obj)


def pickle_dataset(obj: Any, codec: str | None = None) -> tuple[list[memoryview], list[memoryview]]:
    """Pickle a dataset.

    Parameters
    ----------
    obj
        The dataset.
    codec
        Name of the codec that converts the whole dataset, if any.

    Returns
    -------
    stream
        Consecutive pieces of the pickle stream.
    buffers
        Out-of-band buffers, flat and of bytes: views on the arrays of the
        object.
    """
    file = _Pieces()
    buffers: list[memoryview] = []
    pickler = _Pickler(file, lambda buffer: buffers.append(buffer.raw()))
    pickler.dump(obj if codec is None else _ByCodec(codec, obj))
    return file.pieces, buffers
