"""Spark session, JVM, backend, worker entry and data source: the only package that imports PySpark."""

from __future__ import annotations

__all__ = ["SparkBackend", "make_session", "register"]

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .backend import SparkBackend
    from .datasource import register
    from .session import make_session

__getattr__ = lazy_names(
    __name__, {"SparkBackend": "backend", "make_session": "session", "register": "datasource"}
)
