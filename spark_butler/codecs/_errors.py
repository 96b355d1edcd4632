from __future__ import annotations

__all__ = ["CodecError"]

from ..errors import SparkButlerError


class CodecError(SparkButlerError, ValueError):
    """Error raised if a dataset can't be encoded or decoded."""
