"""The encoded form: a header, the name of the codec, a table of buffers, a pickle stream, the buffers.

Runs in workers and children.  All integers are little-endian.  Buffers begin at multiples of `ALIGNMENT`
bytes.  The checksum covers everything before the first buffer.
"""

from __future__ import annotations

__all__ = ["ALIGNMENT", "EncodedObject", "Form"]

import dataclasses
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Self

from ..errors import CodecError

ALIGNMENT = 64

_MAGIC = b"SBtmp\x01\r\n"
# Magic, checksum, length of the codec's name, number of buffers, length of the pickle stream, total length.
_HEADER = struct.Struct("<8sIIQQQ")
_CHECKSUM = slice(8, 12)


def _padding(position: int) -> int:
    return -position % ALIGNMENT


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedObject:
    """A dataset in its encoded form.

    Notes
    -----
    The form has views on the arrays of its object: use it before that object
    changes.
    """

    codec: str
    """Name of the codec that made it."""

    nbytes: int
    """Total length of the encoded form in bytes."""

    head: tuple[memoryview, ...]
    """Everything before the first buffer."""

    buffers: tuple[memoryview, ...]
    """Buffers of the object, each flat and of bytes."""

    @classmethod
    def assemble(cls, codec: str, stream: Sequence[memoryview], buffers: Sequence[memoryview]) -> Self:
        """Build the encoded form from its parts.

        Parameters
        ----------
        codec
            Name of the codec.
        stream
            Consecutive pieces of the pickle stream.
        buffers
            Out-of-band buffers, each flat and of bytes.

        Returns
        -------
        encoded
            The form; only the header is copied.
        """
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
        """Yield consecutive pieces of the encoded form.

        Yields
        ------
        piece
            Flat bytes, never empty; large ones are views on the arrays of
            the object.
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
    """The parts of an encoded form, as views on its bytes."""

    codec: str
    """Name of the codec that made it."""

    stream: memoryview
    """Pickle stream."""

    buffers: tuple[memoryview, ...]
    """Out-of-band buffers."""

    @classmethod
    def parse(cls, data: bytearray | memoryview) -> Self:
        """Return the parts of an encoded form.

        Parameters
        ----------
        data
            The whole form.

        Returns
        -------
        form
            Views on the parts.

        Raises
        ------
        CodecError
            Raised if the bytes are not a whole encoded form.
        """
        view = memoryview(data).cast("B")
        if view.nbytes < _HEADER.size or view[: len(_MAGIC)] != _MAGIC:
            raise CodecError(
                f"These {view.nbytes} bytes are no serialized dataset: they begin with {bytes(view[:8])!r},"
                f" expected {_MAGIC!r}."
            )
        _, checksum, n_name, n_buffers, n_stream, total = _HEADER.unpack_from(view)
        if total != view.nbytes:
            raise CodecError(f"A serialized dataset of {total} bytes has come as {view.nbytes} bytes.")
        start = _HEADER.size + n_name + 8 * n_buffers
        position = start + n_stream
        if position > total:
            raise CodecError("The header of a serialized dataset was damaged on its way: lengths disagree.")
        header = bytearray(view[:start])
        header[_CHECKSUM] = bytes(4)
        if zlib.crc32(view[start:position], zlib.crc32(header)) != checksum:
            raise CodecError("The head of a serialized dataset was damaged on its way: its checksum differs.")
        buffers = []
        for (size,) in struct.iter_unpack("<Q", view[_HEADER.size + n_name : start]):
            begin = position + _padding(position)
            position = begin + size
            buffers.append(view[begin:position])
        name = bytes(view[_HEADER.size : _HEADER.size + n_name]).decode()
        return cls(name, view[start : start + n_stream], tuple(buffers))
