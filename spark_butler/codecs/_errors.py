from __future__ import annotations

__all__ = ["CodecError"]

from ..errors import SparkButlerError


class CodecError(SparkButlerError, ValueError):
    """A dataset can't be serialized, or bytes are not a serialized dataset."""
