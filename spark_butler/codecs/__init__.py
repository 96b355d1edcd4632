"""Conversion of temporary datasets to bytes and back.

Runs in workers and children.  A decoded dataset is like one that was read
from a datastore: its arrays are writable, and it shares memory with no other object.

>>> from lsst.daf.butler import StorageClassFactory
>>> from spark_butler.codecs import decode, encode
>>> storage_class = StorageClassFactory().getStorageClass("NumpyArray")
>>> encoded = encode(array, storage_class)
>>> data = bytearray(b"".join(encoded.pieces()))
>>> copy = decode(data, storage_class)

An object is encoded by the first of these that works:

1. a codec for its storage class, or for types inside it, that a user provides
   (`register_codec`, or entry points);
2. pickle protocol 5, arrays out of band and without a copy, with reducers for
   types that don't pickle or pickle slowly;
3. the formatter that a datastore would use (`FormatterFallback`).
"""

from __future__ import annotations

__all__ = [
    "Codec",
    "CodecError",
    "EncodedObject",
    "FormatterFallback",
    "check_storage_class",
    "copy_object",
    "decode",
    "encode",
    "register_codec",
]

from ..errors import CodecError
from ._encoding import EncodedObject, check_storage_class, copy_object, decode, encode
from ._formatter import FormatterFallback
from ._user_codecs import Codec, register_codec
