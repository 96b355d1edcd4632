"""The notebook interface: queries, data IDs, background runs."""

from __future__ import annotations

__all__ = ["SparkButler"]

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .butler import SparkButler

__getattr__ = lazy_names(
    __name__,
    {
        "SparkButler": "butler",
    },
)
