"""Pickling by protocol 5 with out-of-band buffers, and with reducers for types that need one.

Runs in workers and children.  A reducer returns a value as `object.__reduce__`
does, or `NotImplemented` if the type's own method is as good.  Reducers are
registered by the names of types, so that these need not be imported.
"""

from __future__ import annotations

__all__ = ["pickle_dataset"]

import pickle
import sys
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle
import numpy as np

from ..errors import CodecError
from ._user_codecs import find_codec, find_codec_of_type

Reducer = Callable[[Any], Any]

# Smaller arrays are part of the pickle stream.
_MIN_OUT_OF_BAND = 1024


def _make_array(buffer: Any, shape: tuple[int, ...], dtype: np.dtype[Any], order: Any) -> np.ndarray:
    return np.ndarray(shape, dtype, buffer, order=order)


class _ReadOnly:
    """Read-only array that is pickled as a writable one.

    Pickle builds read-only arrays from read-only buffers, but a dataset that is read from a datastore has
    writable arrays.
    """

    def __init__(self, array: np.ndarray):
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _reduce_array(array: np.ndarray) -> Any:
    if array.dtype.hasobject:
        return NotImplemented
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = array.copy(order="K")
        if not array.flags.f_contiguous:
            array = np.ascontiguousarray(array)
    order = "C" if array.flags.c_contiguous else "F"
    buffer: Any
    if array.nbytes < _MIN_OUT_OF_BAND:
        buffer = bytearray(array.tobytes(order="A"))
    else:
        flat = (array if order == "C" else array.T).reshape(-1).view(np.uint8)
        buffer = pickle.PickleBuffer(flat if flat.flags.writeable else np.asarray(_ReadOnly(flat)))
    return _make_array, (buffer, array.shape, array.dtype, order)


def _plain(array: np.ndarray) -> np.ndarray:
    # Subclasses override the method of the array.
    return np.ndarray.view(array, np.ndarray)


def _view_array(cls: type, array: np.ndarray, attributes: dict[str, Any]) -> Any:
    view: Any = array.view(cls)
    for name, value in attributes.items():
        setattr(view, name, value)
    return view


def _make_masked(cls: type, data: Any, mask: Any, attributes: dict[str, Any]) -> Any:
    array = np.ma.MaskedArray.__new__(cls, data, mask=mask, copy=False)
    for name, value in attributes.items():
        setattr(array, name, value)
    return array


def _masked_parts(array: Any) -> tuple[np.ndarray, Any, dict[str, Any]]:
    attributes = {name: getattr(array, name) for name in ("_fill_value", "_hardmask", "_baseclass")}
    return _plain(array), array._mask, attributes


def _reduce_masked(array: Any) -> Any:
    if not _pickles_as(type(array), np.ma.MaskedArray):
        return NotImplemented
    return _make_masked, (type(array), *_masked_parts(array))


def _pickles_as(cls: Any, base: Any) -> bool:
    """Return whether a type pickles by the methods of one of its bases."""
    return cls.__reduce__ is base.__reduce__ and cls.__setstate__ is base.__setstate__


def _pickles_as_array(cls: Any) -> bool:
    return _pickles_as(cls, np.ndarray) and cls.__reduce_ex__ is np.ndarray.__reduce_ex__


def _reduce_subclass(array: np.ndarray) -> Any:
    if not _pickles_as_array(type(array)):
        return NotImplemented
    return _view_array, (type(array), _plain(array), {})


_COLUMN_ATTRIBUTES = ("_name", "_unit", "_format", "description", "meta")


def _reduce_column(column: Any) -> Any:
    cls = type(column)
    if not _pickles_as(cls, sys.modules["astropy.table.column"].BaseColumn):
        return NotImplemented
    attributes = {name: getattr(column, name) for name in _COLUMN_ATTRIBUTES}
    attributes["_parent_table"] = None
    if isinstance(column, np.ma.MaskedArray):
        data, mask, more = _masked_parts(column)
        return _make_masked, (cls, data, mask, more | attributes)
    return _view_array, (cls, _plain(column), attributes)


def _make_with_state(cls: type, array: np.ndarray, state: dict[str, Any]) -> Any:
    result: Any = array.view(cls)
    result.__dict__.update(state)
    return result


def _reduce_quantity(quantity: Any) -> Any:
    cls = type(quantity)
    if not _pickles_as(cls, sys.modules["astropy.units.quantity"].Quantity):
        return NotImplemented
    return _make_with_state, (cls, _plain(quantity), quantity.__dict__)


def _reduce_astropy_masked(array: Any) -> Any:
    # Times and coordinates would pickle these as plain arrays, without the mask.
    if not _pickles_as_array(type(array)):
        return NotImplemented
    return _make_with_state, (type(array), _plain(array), array.__dict__)


def _reduce_info(info: Any) -> Any:
    make, arguments, state, *_ = info.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if state is not None:
        # A table sets these attributes of its columns when it is unpickled.
        state = {name: value for name, value in state.items() if name not in info._attrs_no_copy}
    return make, arguments, state


def _make_table(
    cls: type,
    columns: Mapping[str, Any],
    indices: list[tuple[list[str], type, bool]],
    attributes: Mapping[str, Any],
) -> Any:
    table: Any = cls(masked=attributes["masked"])
    for name, column in columns.items():
        table.columns[name] = column
        column.info.parent_table = table
    for names, engine, unique in indices:
        table.add_index(names, engine=engine, unique=unique)
    table.meta = attributes["meta"]
    table.primary_key = attributes["primary_key"]
    return table


def _reduce_table(table: Any) -> Any:
    module = sys.modules["astropy.table.table"]
    if type(table) not in (module.Table, module.QTable):
        return NotImplemented
    indices = []
    for index in table.indices:
        whole = getattr(index, "index", index)
        indices.append(([column.info.name for column in index.columns], type(whole.data), whole.data.unique))
    attributes = {name: getattr(table, name) for name in ("masked", "meta", "primary_key")}
    return _make_table, (type(table), dict(table.columns), indices, attributes)


def _read_arrow(buffer: Any) -> Any:
    import pyarrow.ipc

    return pyarrow.ipc.open_stream(buffer).read_all()


def _reduce_arrow(table: Any) -> Any:
    import pyarrow.ipc

    # A slice of a table would pickle the whole table.
    if table.get_total_buffer_size() <= 2 * table.nbytes + _MIN_OUT_OF_BAND:
        return NotImplemented
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return _read_arrow, (pickle.PickleBuffer(sink.getvalue()),)


class _AstText:
    """List of lines, as the file that an AST channel writes to and reads from."""

    def __init__(self, lines: list[str]):
        self.lines = lines

    def astsink(self, line: str) -> None:
        self.lines.append(line)

    def astsource(self) -> str | None:
        return self.lines.pop() if self.lines else None


def _make_ast(text: str) -> Any:
    import starlink.Ast

    return starlink.Ast.Channel(_AstText(text.split("\n")[::-1]), None).read()


def _reduce_ast(obj: Any) -> Any:
    import starlink.Ast

    sink = _AstText([])
    starlink.Ast.Channel(None, sink, "Comment=0,Full=-1,Indent=0").write(obj)
    return _make_ast, ("\n".join(sink.lines),)


_REDUCERS: dict[str, Reducer] = {
    "astropy.table.column.BaseColumn": _reduce_column,
    "astropy.table.table.Table": _reduce_table,
    "astropy.units.quantity.Quantity": _reduce_quantity,
    "astropy.utils.data_info.DataInfo": _reduce_info,
    "astropy.utils.masked.core.MaskedNDArray": _reduce_astropy_masked,
    "numpy.ma.MaskedArray": _reduce_masked,
    "pyarrow.lib.Table": _reduce_arrow,
    "starlink.Ast.Object": _reduce_ast,
}


_found: dict[type, Reducer | None] = {np.ndarray: _reduce_array}


def _find_reducer(cls: type) -> Reducer | None:
    """Return the reducer of a type, or of its nearest base that has one."""
    if cls not in _found:
        names = (f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
        default = _reduce_subclass if issubclass(cls, np.ndarray) else None
        _found[cls] = next((_REDUCERS[name] for name in names if name in _REDUCERS), default)
    return _found[cls]


class _Pieces:
    """File-like object that keeps the written pieces separate."""

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

    Cloudpickle adds classes and functions that the receiver can't import, such as those of a notebook.
    """

    def __init__(self, file: _Pieces, buffer_callback: Callable[[pickle.PickleBuffer], None]):
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if (name := find_codec_of_type(cls)) is not None:
            return _ByCodec(name, obj).__reduce__()
        if (reducer := _find_reducer(cls)) is not None:
            return reducer(obj)
        return super().reducer_override(obj)


def pickle_dataset(obj: Any, codec: str | None = None) -> tuple[list[memoryview], list[memoryview]]:
    """Pickle a dataset; if a codec is named, it converts the whole dataset.

    Returns consecutive pieces of the pickle stream, and the out-of-band buffers, which are flat views of the
    object's arrays as bytes.
    """
    file = _Pieces()
    buffers: list[memoryview] = []
    pickler = _Pickler(file, lambda buffer: buffers.append(buffer.raw()))
    pickler.dump(obj if codec is None else _ByCodec(codec, obj))
    return file.pieces, buffers
