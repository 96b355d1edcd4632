"""Take objects of any type to leaves, to compare two of them and to find what they share."""

from __future__ import annotations

__all__ = ["assert_independent", "assert_same", "join"]

import enum
import functools
import math
import types
import uuid
from collections.abc import Iterator
from typing import Any

import astropy.coordinates
import astropy.table
import astropy.time
import astropy.units
import lsst.pex.config
import numpy as np
import pyarrow as pa
import starlink.Ast
from astro_metadata_translator import ObservationInfo

from spark_butler.codecs import EncodedObject

_ATOMS = (
    int,
    str,
    bytes,
    complex,
    type(None),
    type(Ellipsis),
    enum.Enum,
    uuid.UUID,
    types.FunctionType,
    type,
)
_LEAVES = (
    *_ATOMS,
    float,
    set,
    frozenset,
    types.ModuleType,
    np.generic,
    pa.Table,
    pa.Schema,
    astropy.units.UnitBase,
    lsst.pex.config.Config,
    starlink.Ast.Object,
)
_CACHES = {"_parent_table", "_optinfo", "info", "_id_cache", "cache", "formatter"}


class _AstSink:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def astsink(self, line: str) -> None:
        self.lines.append(line)


def _ast_text(obj: starlink.Ast.Object) -> list[str]:
    sink = _AstSink()
    starlink.Ast.Channel(None, sink, "Comment=0,Full=1").write(obj)
    return sink.lines


def _state(obj: Any) -> dict[str, Any]:
    state = dict(getattr(obj, "__dict__", {}))
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__weakref__", "__dict__") and hasattr(obj, name):
                state[name] = getattr(obj, name)
    lazy = {name for name in state if isinstance(getattr(type(obj), name, None), functools.cached_property)}
    if isinstance(obj, ObservationInfo):
        # Its own pickled state doesn't tell values from defaults.
        state["__pydantic_fields_set__"] = obj.model_dump_json()
    return {name: state[name] for name in sorted(state.keys() - _CACHES - lazy)}


def _is_from(package: str, obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] == package


def _children(obj: Any) -> dict[str, Any] | None:
    """Return what an object consists of, or `None` for a leaf."""
    if isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            plain = obj.view(np.ma.MaskedArray)
            children: dict[str, Any] = {"data": plain.data.view(np.ndarray), "mask": plain.mask}
            children["nomask"] = np.ma.getmask(plain) is np.ma.nomask
            children["fill_value"] = plain.fill_value
        elif type(obj) is np.ndarray:
            return (
                {str(n): each for n, each in enumerate(obj.flat)}
                if obj.dtype.hasobject and not obj.dtype.names
                else None
            )
        else:
            children = {"data": np.ndarray.view(obj, np.ndarray)}
        if isinstance(obj, astropy.table.Column):
            names = ("name", "unit", "format", "description", "meta")
            return children | {name: getattr(obj, name) for name in names}
        if type(obj) is np.ma.MaskedArray:
            return children
        return children | _state(obj)
    if isinstance(obj, astropy.table.Table):
        columns = {f"column {name}": obj[name] for name in obj.colnames}
        infos = {
            f"info {name}": {
                key: getattr(obj[name].info, key) for key in ("name", "format", "description", "meta")
            }
            for name in obj.colnames
        }
        more = {"names": obj.colnames, "meta": obj.meta, "masked": obj.masked, "key": obj.primary_key}
        return columns | infos | more
    if isinstance(obj, _LEAVES) or _is_from("pandas", obj) or _is_from("galsim", obj):
        return None
    if isinstance(obj, dict):
        return {"keys": tuple(obj)} | {f"[{key!r}]": value for key, value in obj.items()} | _state(obj)
    if isinstance(obj, list | tuple):
        return {"length": len(obj)} | {f"[{n}]": value for n, value in enumerate(obj)} | _state(obj)
    return _state(obj) or None


def _walk(obj: Any, path: str = "", above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any, bool]]:
    """Yield path, object, and whether it is a leaf."""
    if any(obj is other for other in above):
        return
    children = _children(obj)
    yield path, obj, children is None
    for name, child in (children or {}).items():
        yield from _walk(child, f"{path}.{name}", (*above, obj))


def _assert_equal_leaves(a: Any, b: Any, path: str) -> None:
    if isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype, path
        assert np.shape(a) == np.shape(b), path
        if a.dtype.hasobject:
            assert a.tolist() == b.tolist(), path
        else:
            assert a.tobytes() == b.tobytes(), path
    elif isinstance(a, starlink.Ast.Object):
        assert _ast_text(a) == _ast_text(b), path
    elif isinstance(a, float):
        assert a == b or (math.isnan(a) and math.isnan(b)), path
    elif isinstance(a, pa.Table | pa.Schema):
        assert a.equals(b, check_metadata=True), path
    elif _is_from("pandas", a):
        import pandas as pd

        if isinstance(a, pd.DataFrame):
            pd.testing.assert_frame_equal(a, b, check_exact=True, check_flags=True)
        elif isinstance(a, pd.Index):
            pd.testing.assert_index_equal(a, b, exact=True)
        else:
            assert a.equals(b), path
        assert getattr(a, "attrs", None) == getattr(b, "attrs", None), path
    elif "__eq__" in {name for each in type(a).__mro__[:-1] for name in vars(each)}:
        assert a == b, path


def assert_same(a: Any, b: Any) -> None:
    """Assert that two objects have the same types, values and attributes all the way down."""
    ours, theirs = _walk(a), _walk(b)
    for (path, left, is_leaf), (other_path, right, _) in zip(ours, theirs, strict=True):
        assert path == other_path
        assert type(left) is type(right), path
        if is_leaf:
            _assert_equal_leaves(left, right, path)
        if isinstance(right, np.ndarray):
            assert right.flags.writeable, path


def assert_independent(a: Any, b: Any) -> None:
    """Assert that no array, container or AST object belongs to two objects."""
    ours = {path: obj for path, obj, _ in _walk(a)}
    theirs = {path: obj for path, obj, _ in _walk(b)}
    mutable = (list, set, bytearray, dict, starlink.Ast.Object)
    containers = {id(obj): path for path, obj in ours.items() if isinstance(obj, mutable)}
    shared = {path for path, obj in theirs.items() if id(obj) in containers}
    assert not shared
    arrays = [obj for obj in ours.values() if isinstance(obj, np.ndarray)]
    for path, array in theirs.items():
        if isinstance(array, np.ndarray):
            assert not any(np.may_share_memory(array, other) for other in arrays), path


def join(encoded: EncodedObject) -> bytearray:
    """Put the pieces together, as the engine does."""
    return bytearray(b"".join(encoded.pieces()))
