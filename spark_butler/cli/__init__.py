"""The `spark-butler` commands."""

__all__ = ["program"]

from .main import program
