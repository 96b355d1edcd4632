"""Encoding, decoding and copying of datasets, and the encoded form.

Runs in workers and children.  The encoded form consists of a header, the name of the codec, a table of
buffers, a pickle stream, and the buffers.  All integers are little-endian.  Buffers begin at multiples of
`ALIGNMENT` bytes.  A checksum in the header covers everything before the first buffer.
"""

from __future__ import annotations

__all__ = ["ALIGNMENT", "EncodedObject", "Form", "check_storage_class", "copy_object", "decode", "encode"]

import dataclasses
import logging
import pickle
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from lsst.daf.butler import StorageClass
from lsst.utils.introspection import get_full_type_name

from ..errors import CodecError, PlanError
from ._formatter import FormatterFallback
from ._pickling import pickle_dataset
from ._user_codecs import find_codec, find_codec_of_type

logger = logging.getLogger(__name__)

_PICKLE = "pickle"
_FORMATTER = "formatter"

# Types of which this process has unpickled an object, see `_prove`.
_proven: set[type] = set()

ALIGNMENT = 64

_MAGIC = b"SBtmp\x01\r\n"
# Magic, checksum, length of the codec's name, number of buffers, length of the pickle stream, total length.
_HEADER = struct.Struct("<8sIIQQQ")
_CHECKSUM = slice(8, 12)


def _padding(position: int) -> int:
    return -position % ALIGNMENT


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedObject:
    """A dataset in its encoded form, with views of the object's arrays: use it before the object changes."""

    codec: str
    """Name of the codec that encoded the object."""

    nbytes: int
    """Total length of the encoded form in bytes."""

    head: tuple[memoryview, ...]
    """Everything before the first buffer."""

    buffers: tuple[memoryview, ...]
    """Buffers of the object, each a flat view of bytes."""

    @classmethod
    def assemble(cls, codec: str, stream: Sequence[memoryview], buffers: Sequence[memoryview]) -> Self:
        """Build the encoded form from a pickle stream and flat buffers of bytes, which are not copied."""
        name = codec.encode()
        sizes = struct.pack(f"<{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
        length = sum(piece.nbytes for piece in stream)
        total = _HEADER.size + len(name) + len(sizes) + length
        for buffer in buffers:
            total += _padding(total) + buffer.nbytes
        header = bytearray(_HEADER.pack(_MAGIC, 0, len(name), len(buffers), length, total))
        header += name + sizes
        checksum = zlib.crc32(header)
        for piece in stream:
            checksum = zlib.crc32(piece, checksum)
        header[_CHECKSUM] = checksum.to_bytes(4, "little")
        return cls(codec, total, (memoryview(header), *stream), tuple(buffers))

    def pieces(self) -> Iterator[memoryview]:
        """Yield consecutive pieces of the encoded form: flat bytes, never empty.

        Large pieces are views of the object's arrays.
        """
        position = 0
        for piece in self.head:
            position += piece.nbytes
            yield piece
        for buffer in self.buffers:
            if padding := _padding(position):
                yield memoryview(bytes(padding))
            if buffer.nbytes:
                yield buffer
            position += padding + buffer.nbytes


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """Parts of an encoded form, as views of its bytes."""

    codec: str
    stream: memoryview
    buffers: tuple[memoryview, ...]

    @classmethod
    def parse(cls, data: bytearray | memoryview) -> Self:
        """Return the parts of a whole encoded form; raise `CodecError` for other bytes."""
        view = memoryview(data).cast("B")
        if view.nbytes < _HEADER.size or view[: len(_MAGIC)] != _MAGIC:
            raise CodecError(
                f"These {view.nbytes} bytes aren't a serialized dataset: they begin with {bytes(view[:8])!r},"
                f" expected {_MAGIC!r}."
            )
        _, checksum, n_name, n_buffers, n_stream, total = _HEADER.unpack_from(view)
        if total != view.nbytes:
            raise CodecError(f"A serialized dataset of {total} bytes arrived with {view.nbytes} bytes.")
        start = _HEADER.size + n_name + 8 * n_buffers
        position = start + n_stream
        if position > total:
            raise CodecError("The header of a serialized dataset was damaged in transit: lengths disagree.")
        header = bytearray(view[:start])
        header[_CHECKSUM] = bytes(4)
        if zlib.crc32(view[start:position], zlib.crc32(header)) != checksum:
            raise CodecError("The head of a serialized dataset was damaged in transit: its checksum differs.")
        buffers = []
        for (size,) in struct.iter_unpack("<Q", view[_HEADER.size + n_name : start]):
            begin = position + _padding(position)
            position = begin + size
            buffers.append(view[begin:position])
        name = bytes(view[_HEADER.size : _HEADER.size + n_name]).decode()
        return cls(name, view[start : start + n_stream], tuple(buffers))


def _codec_of(storage_class: StorageClass) -> str | None:
    return storage_class.name if find_codec(storage_class.name) is not None else None


def _private(buffers: list[memoryview]) -> list[memoryview]:
    return [memoryview(np.array(buffer, dtype=np.uint8)) for buffer in buffers]


def _join(stream: list[memoryview]) -> bytes | memoryview:
    return stream[0] if len(stream) == 1 else b"".join(stream)


def _prove(cls: type, stream: list[memoryview], buffers: list[memoryview]) -> None:
    """Check once per type that an object unpickles: an object that pickles may fail to unpickle."""
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
    storage_class
        Storage class of the dataset type in the repository.
    formatter
        Last resort, for an object that doesn't pickle.

    Returns
    -------
    encoded
        The encoded form, with views of the object's arrays.

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
    data: bytearray | memoryview, storage_class: StorageClass, *, formatter: FormatterFallback | None = None
) -> Any:
    """Decode a dataset.

    Parameters
    ----------
    data
        The whole encoded form in one writable buffer.  The arrays of the dataset are views of it, so don't
        use the buffer again.
    storage_class
        Storage class that the dataset was encoded with.
    formatter
        Required if the formatter encoded the dataset.

    Raises
    ------
    CodecError
        Raised if the bytes are not a whole encoded form, or if this process lacks the codec.
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
    """Copy a dataset, so that a change of the copy doesn't change the original.

    Parameters
    ----------
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
    """Check that datasets of a storage class can be temporary; return the codec that is tried first.

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
