"""How one temporary dataset becomes bytes, and comes back as if read from a datastore.

>>> from lsst.daf.butler import StorageClassFactory
>>> from spark_butler.codecs import decode, encode
>>> storage_class = StorageClassFactory().getStorageClass("NumpyArray")
>>> encoded = encode(array, storage_class)
>>> data = bytearray(b"".join(encoded.pieces()))
>>> copy = decode(data, storage_class)

A dataset takes the first of these ways that works:

1. a codec of the user's for its storage class, or reducers of the user's for
   types inside it (`register_codec`, or entry points);
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

from ._api import check_storage_class, copy_object, decode, encode
from ._errors import CodecError
from ._form import EncodedObject
from ._formatter import FormatterFallback
from ._registry import Codec, register_codec
