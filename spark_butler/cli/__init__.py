"""Commands of `spark-butler`; ``run`` and ``plan`` run in the driver."""

__all__ = ["program"]

from .main import program
