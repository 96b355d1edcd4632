"""Registry of the codecs that users provide.  Runs in the driver, workers and children."""

from __future__ import annotations

__all__ = ["Codec", "find_codec", "find_codec_of_type", "register_codec"]

import functools
import importlib.metadata
import sys
from typing import Any, Protocol, runtime_checkable

from ..errors import CodecError

_GROUP = "spark_butler.codecs"


@runtime_checkable
class Codec(Protocol):
    """Protocol of the codecs that users provide for a storage class or a Python type."""

    def to_parts(self, obj: Any, /) -> Any:
        """Return a dataset, or an object inside one, as parts that can be pickled.

        Parts are numbers, strings, bytes, arrays, and containers of these.  Arrays are not copied.
        """
        ...

    def from_parts(self, parts: Any, /) -> Any:
        """Build an object that is equal to the one that was passed to `to_parts`, from its parts.

        Arrays are writable, and no other object shares them.
        """
        ...


_registered: dict[str, Codec] = {}
_by_type: dict[type, str | None] = {}


def register_codec(name: str, codec: Codec) -> None:
    """Register a codec in this process.

    Parameters
    ----------
    name
        Name of a storage class, or full name of a Python type.  A codec of a type also serves its subclasses,
        and objects inside a dataset.
    codec
        The codec.  It replaces an earlier one of the same name.

    Notes
    -----
    Other processes don't see the registration.  Workers find codecs by entry points in the group
    ``spark_butler.codecs``, or by a module that registers them and that tasks on both sides import.
    """
    _registered[name] = codec
    _by_type.clear()


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {each.name: each for each in importlib.metadata.entry_points(group=_GROUP)}


def find_codec(name: str) -> Codec | None:
    """Return the codec for a storage class or the full name of a Python type; `None` if there is none."""
    if (codec := _registered.get(name)) is not None:
        return codec
    if (entry_point := _entry_points().get(name)) is None:
        return None
    try:
        loaded: Any = entry_point.load()
        if isinstance(loaded, type):
            loaded = loaded()
    except Exception as err:  # the user's module may raise anything
        raise CodecError(
            f"The codec {name!r} of the entry point {entry_point.value!r} can't be loaded: {err}"
        ) from err
    if not isinstance(loaded, Codec):
        raise CodecError(
            f"The entry point {entry_point.value!r} of the codec {name!r} is a {type(loaded).__name__},"
            " expected an object with the methods to_parts and from_parts."
        )
    _registered[name] = loaded
    return loaded


def _same_type(name: str, cls: type) -> bool:
    if name == f"{cls.__module__}.{cls.__qualname__}":
        return True
    # A package may export a type that a private module defines.
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None) is cls


def find_codec_of_type(cls: type) -> str | None:
    """Return the name of the codec of a type, or of its nearest base that has one; `None` if none has."""
    if cls not in _by_type:
        names = [name for name in {**_entry_points(), **_registered} if "." in name]
        _by_type[cls] = next((name for base in cls.__mro__ for name in names if _same_type(name, base)), None)
    return _by_type[cls]
