"""Commands of `spark-butler`."""

__all__ = ["program"]

from .main import program
