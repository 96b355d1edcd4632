"""Version of the package, which the build and every command read without importing anything else."""

__all__ = ["__version__"]

__version__ = "0.1.0"
