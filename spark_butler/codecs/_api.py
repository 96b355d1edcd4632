"""Encoding, decoding and copying of datasets by the first codec that works."""

from __future__ import annotations

__all__ = ["check_storage_class", "copy_object", "decode", "encode"]

import logging
import pickle
from typing import Any

import numpy as np
from lsst.daf.butler import StorageClass
from lsst.utils.introspection import get_full_type_name

from ..errors import CodecError, PlanError
from ._form import EncodedObject, Form
from ._formatter import FormatterFallback
from ._pickling import pickle_dataset
from ._registry import find_codec, find_codec_of_type

logger = logging.getLogger(__name__)

_PICKLE = "pickle"
_FORMATTER = "formatter"

# Types of which this process has unpickled an object.
_proven: set[type] = set()


def _codec_of(storage_class: StorageClass) -> str | None:
    return storage_class.name if find_codec(storage_class.name) is not None else None


def _private(buffers: list[memoryview]) -> list[memoryview]:
    return [memoryview(np.array(buffer, dtype=np.uint8)) for buffer in buffers]


def _join(stream: list[memoryview]) -> bytes | memoryview:
    return stream[0] if len(stream) == 1 else b"".join(stream)


def _prove(cls: type, stream: list[memoryview], buffers: list[memoryview]) -> None:
    """Unpickle the first object of a type, because an object that pickles may fail to unpickle elsewhere."""
    if cls in _proven:
        return
    joined = _join(stream)
    try:
        pickle.loads(joined, buffers=[buffer.toreadonly() for buffer in buffers])
    except Exception:  # noqa: BLE001  # the type may want to write to its arrays
        pickle.loads(joined, buffers=_private(buffers))
    _proven.add(cls)


def encode(
    obj: Any, storage_class: StorageClass, *, formatter: FormatterFallback | None = None
) -> EncodedObject:
    """Encode a dataset.

    Parameters
    ----------
    obj
        The dataset.
    storage_class
        Storage class of the dataset type in the repository.
    formatter
        Last resort, for an object that doesn't pickle.

    Returns
    -------
    encoded
        The encoded form, with views on the arrays of the object.

    Raises
    ------
    CodecError
        Raised if no codec works.
    """
    codec = _codec_of(storage_class)
    try:
        stream, buffers = pickle_dataset(obj, codec)
        _prove(type(obj), stream, buffers)
    except Exception as err:  # the object's own code runs: it may raise anything
        type_name = get_full_type_name(obj)
        if codec is not None or formatter is None:
            raise CodecError(
                f"A {type_name} of storage class {storage_class.name!r} can't be serialized"
                f" by {codec or _PICKLE!r}: {type(err).__name__}: {err}"
            ) from err
        logger.debug("A %s does not pickle (%s); its formatter is used.", type_name, err)
    else:
        return EncodedObject.assemble(codec or find_codec_of_type(type(obj)) or _PICKLE, stream, buffers)
    try:
        stream, buffers = pickle_dataset(formatter.to_parts(obj))
    except Exception as err:  # as above, with the formatter's code
        raise CodecError(
            f"A {type_name} of storage class {storage_class.name!r} neither pickles nor can be written"
            f" by its formatter: {type(err).__name__}: {err}"
        ) from err
    return EncodedObject.assemble(_FORMATTER, stream, buffers)


def decode(
    data: bytearray | memoryview,
    storage_class: StorageClass,
    *,
    formatter: FormatterFallback | None = None,
) -> Any:
    """Decode a dataset.

    Parameters
    ----------
    data
        The whole encoded form in one writable buffer.  The arrays of the
        dataset are views on it, so don't use the buffer again.
    storage_class
        Storage class that the dataset was encoded with.
    formatter
        Required if the formatter encoded the dataset.

    Returns
    -------
    obj
        The dataset.

    Raises
    ------
    CodecError
        Raised if the bytes are not a whole encoded form, or if this process
        lacks the codec.
    """
    form = Form.parse(data)
    obj = pickle.loads(form.stream, buffers=form.buffers)
    if form.codec != _FORMATTER:
        return obj
    if formatter is None:
        raise CodecError(
            f"A dataset of storage class {storage_class.name!r} was serialized by its formatter, but"
            " no formatter was given to read it with."
        )
    return formatter.from_parts(*obj)


def copy_object(obj: Any, storage_class: StorageClass, *, formatter: FormatterFallback | None = None) -> Any:
    """Copy a dataset, so that a change of one doesn't change the other.

    Parameters
    ----------
    obj
        The dataset.
    storage_class
        Its storage class.
    formatter
        Last resort, for an object that doesn't pickle.

    Returns
    -------
    copy
        The dataset that `decode` would return after `encode`.

    Raises
    ------
    CodecError
        Raised if the dataset can't be copied.
    """
    if type(obj) is np.ndarray and not obj.dtype.hasobject:
        return obj.copy(order="K")
    try:
        stream, buffers = pickle_dataset(obj, _codec_of(storage_class))
        return pickle.loads(_join(stream), buffers=_private(buffers))
    except Exception as err:  # the object's own code runs: it may raise anything
        if formatter is None:
            raise CodecError(
                f"A {get_full_type_name(obj)} of storage class {storage_class.name!r} can't be copied:"
                f" {type(err).__name__}: {err}"
            ) from err
    encoded = encode(obj, storage_class, formatter=formatter)
    return decode(bytearray().join(encoded.pieces()), storage_class, formatter=formatter)


def check_storage_class(storage_class: StorageClass) -> str:
    """Check that datasets of a storage class can be temporary.

    Parameters
    ----------
    storage_class
        A storage class.

    Returns
    -------
    name
        Name of the codec that is tried first.

    Raises
    ------
    PlanError
        Raised if no codec can work.
    """
    try:
        if (codec := _codec_of(storage_class)) is not None:
            return codec
        pytype = storage_class.pytype
        return find_codec_of_type(pytype) or _PICKLE
    except (CodecError, ImportError, AttributeError, TypeError) as err:
        raise PlanError(
            f"Datasets of storage class {storage_class.name!r} can't be temporary: {err}"
        ) from err
