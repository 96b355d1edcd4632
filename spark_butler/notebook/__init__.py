"""The notebook interface: queries, data IDs, background runs."""

from __future__ import annotations

__all__ = ["SparkButler"]

from .butler import SparkButler
