"""The command ``spark-butler`` for ``python -m`` and ``spark-submit``.  Runs in the driver."""

from __future__ import annotations

__all__: list[str] = []

from spark_butler.cli import program

if __name__ == "__main__":
    program()
